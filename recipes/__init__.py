"""Complete training set-ups: ordinary Lightning code plus one YAML per lever. The library never imports them."""
