"""The language model recipe: network, module, text, data, and the YAML files."""

from __future__ import annotations

import ast
import copy
import math
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from recipes import language_model
from recipes.language_model import text
from recipes.language_model.data import Blocks, TextData
from recipes.language_model.module import LanguageModel
from recipes.language_model.networks import CausalAttention, Decoder, generate

FOLDER = Path(language_model.__file__).parent
CONFIGS = sorted(FOLDER.glob("*.yaml"))
ISA = "Call me Ishmael. Some years ago — never mind how long precisely — having little or no money in my purse. "
SMALL: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "block_size": 8}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{chapter}. {ISA}" for chapter in range(40)), encoding="utf-8")
    return path


def small_data(book: Path, **arguments: Any) -> TextData:
    data = TextData(**{"path": str(book), "block_size": 8, "batch_size": 4, "eval_batch_size": 16, **arguments})
    data.setup("fit")
    return data


def small_trainer(**arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **arguments)


# --- network ----------------------------------------------------------------------------------------------------------


def test_a_later_token_does_not_change_earlier_logits() -> None:
    torch.manual_seed(0)
    net = Decoder(256, dropout=0.0, **SMALL).eval()
    tokens = torch.randint(0, 256, (2, 8))
    before = net(tokens)
    for position in range(8):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 256
        after = net(changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-6)
        assert not torch.allclose(after[:, position], before[:, position], atol=1e-4), position


def test_attention_equals_naive_loops() -> None:
    torch.manual_seed(0)
    attention = CausalAttention(width=6, heads=2)
    x = torch.randn(1, 5, 6)
    q, k, v = attention.qkv(x)[0].split(6, dim=-1)
    rows = []
    for t in range(5):
        heads = []
        for part in (slice(0, 3), slice(3, 6)):
            scores = torch.stack([q[t, part] @ k[s, part] / math.sqrt(3) for s in range(t + 1)])
            heads.append(sum(w * v[s, part] for s, w in enumerate(scores.exp() / scores.exp().sum())))
        rows.append(torch.cat(heads))  # type: ignore[arg-type]
    torch.testing.assert_close(attention(x)[0], attention.out(torch.stack(rows)))


@pytest.mark.parametrize("tied", [True, False])
def test_size_is_counted_by_hand(tied: bool) -> None:
    net = Decoder(256, width=128, layers=4, heads=4, block_size=64, tied=tied)
    block = 2 * 2 * 128 + (128 * 384 + 384) + (128 * 128 + 128) + (128 * 512 + 512) + (512 * 128 + 128)
    expected = 256 * 128 * (1 if tied else 2) + 64 * 128 + 4 * block + 2 * 128
    assert sum(p.numel() for p in net.parameters()) == expected
    assert (net.head.weight is net.tokens.weight) == tied


def test_weights_start_as_in_gpt2() -> None:
    torch.manual_seed(0)
    net = Decoder(256, width=128, layers=2, heads=4, block_size=64)
    assert net.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.0.attention.out.weight", "blocks.1.narrow.weight"):
        assert net.get_parameter(name).std().item() == pytest.approx(0.01, rel=0.05), name
    assert net.get_parameter("blocks.0.widen.weight").std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"width=10 is not divisible by heads=4"):
        LanguageModel(width=10, heads=4)
    with pytest.raises(ValueError, match=r"9 tokens are more than block_size=8"):
        Decoder(256, **SMALL)(torch.zeros(1, 9, dtype=torch.int64))


class Counts(nn.Module):
    """Stands in for a network: the logits of the next byte are high for the last byte plus one."""

    block_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.longest = max(self.longest, tokens.shape[1])
        return 2.0 * F.one_hot((tokens + 1) % 256, 256)


def test_generation_takes_the_likeliest_or_draws() -> None:
    net: Any = Counts()
    assert generate(net, torch.tensor([[7], [254]]), 6, temperature=0).tolist() == [
        [7, 8, 9, 10, 11, 12, 13],
        [254, 255, 0, 1, 2, 3, 4],
    ]
    assert net.longest == 4  # never more than a block
    torch.manual_seed(0)
    drawn = generate(net, torch.full((4000, 1), 9), 1, temperature=0.5)[:, 1]
    likeliest = math.exp(4) / (math.exp(4) + 255)
    assert (drawn == 10).double().mean().item() == pytest.approx(likeliest, abs=0.03)
    assert torch.equal(generate(net, torch.tensor([[5]]), 0), torch.tensor([[5]]))
    with pytest.raises(ValueError, match="temperature=-1 is negative"):
        generate(net, torch.tensor([[5]]), 1, temperature=-1)
    with pytest.raises(ValueError, match="no token to go on from"):
        generate(net, torch.zeros(1, 0, dtype=torch.int64), 1)


# --- module -----------------------------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """Keeps the logits and the bytes that followed, of training and of validation apart."""

    def __init__(self) -> None:
        self.logits: dict[bool, list[Tensor]] = {True: [], False: []}
        self.following: dict[bool, list[Tensor]] = {True: [], False: []}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self.logits[module.training].append(output.detach().clone())

        pl_module.get_submodule("net").register_forward_hook(keep)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.following[True].append(batch[1])

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.following[False].append(batch[1])


def naive_cross_entropy(logits: Tensor, following: Tensor) -> float:
    """Mean over positions of the negative logarithm of the probability of the byte that came, in float64."""
    losses = []
    for row, byte in zip(logits.flatten(0, 1).double(), following.flatten().tolist(), strict=True):
        losses.append(float(row.exp().sum().log() - row[byte]))
    return sum(losses) / len(losses)


def test_logged_values_are_those_of_a_naive_count(book: Path) -> None:
    torch.manual_seed(0)
    recorder = Recorder()
    data = small_data(book)
    trainer = small_trainer(limit_train_batches=3, num_sanity_val_steps=0, callbacks=[recorder])
    trainer.fit(LanguageModel(**SMALL, lr=1e-2, warmup_steps=0), data)

    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    expected = {}
    for training, prefix in ((True, "train"), (False, "val")):
        logits, following = torch.cat(recorder.logits[training]), torch.cat(recorder.following[training])
        loss = naive_cross_entropy(logits, following)
        bits = -math.log2(math.exp(-loss))  # of the mean probability per byte
        acc = (logits.argmax(-1) == following).double().mean().item()
        step = "_epoch" if training else ""
        expected |= {f"{prefix}_loss{step}": loss, f"{prefix}_bits_per_byte{step}": bits, f"{prefix}_acc{step}": acc}
        expected[f"{prefix}_perplexity"] = math.exp(loss)
    assert len(recorder.logits[False]) > 1
    assert logged["train_loss_step"] == pytest.approx(
        naive_cross_entropy(recorder.logits[True][-1], recorder.following[True][-1]), rel=1e-5
    )
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert set(logged) - set(expected) == {
        "train_loss",
        "train_loss_step",
        "train_bits_per_byte",
        "train_bits_per_byte_step",
        "train_acc",
        "train_acc_step",
    }


def test_an_untrained_model_knows_eight_bits_and_training_lowers_them(book: Path) -> None:
    torch.manual_seed(0)
    model, data = LanguageModel(**SMALL, lr=1e-2, warmup_steps=5), small_data(book)
    trainer = small_trainer()
    (before,) = trainer.validate(model, data, verbose=False)
    assert before["val_bits_per_byte"] == pytest.approx(8, abs=0.1)
    assert before["val_perplexity"] == pytest.approx(256, rel=0.05)
    trainer.fit(model, data)
    (after,) = trainer.validate(model, data, verbose=False)
    assert after["val_bits_per_byte"] < 5


@pytest.mark.parametrize("warmup", [0, 4])
def test_optimizer_warms_up_and_stays(warmup: int, book: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    model = LanguageModel(**SMALL, lr=0.02, weight_decay=0.03, warmup_steps=warmup)
    trainer = small_trainer(limit_train_batches=6, limit_val_batches=0, callbacks=[Watch()])
    trainer.fit(model, small_data(book))
    assert type(trainer.optimizers[0]) is torch.optim.AdamW
    (group,) = trainer.optimizers[0].param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["weight_decay"] == 0.03
    expected = [0.005, 0.00875, 0.0125, 0.01625, 0.02, 0.02] if warmup else [0.02] * 6
    assert rates == pytest.approx(expected)


def test_predict_goes_on_from_the_prompts(book: Path) -> None:
    torch.manual_seed(0)
    data = small_data(book, prompts=3)
    predictions = small_trainer().predict(LanguageModel(**SMALL, new_bytes=5), data)
    assert predictions is not None
    (rows,) = predictions
    assert isinstance(rows, Tensor)
    assert rows.shape == (3, 8 + 5)
    (prompts, _) = next(iter(data.predict_dataloader()))
    assert torch.equal(rows[:, :8], prompts)
    assert isinstance(bytes(rows[0].tolist()), bytes)


def test_module_survives_copies_and_a_checkpoint(tmp_path: Path, book: Path) -> None:
    model = LanguageModel(**SMALL, lr=0.01)
    trainer = small_trainer(limit_train_batches=2, limit_val_batches=1)
    trainer.fit(model, small_data(book))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu").eval()
    assert loaded.lr == 0.01
    tokens = torch.randint(0, 256, (2, 8))
    assert torch.equal(loaded(tokens), copy.deepcopy(model).eval()(tokens))


# --- text and data ----------------------------------------------------------------------------------------------------


def test_default_text_is_the_same_every_time_and_repeats_no_paragraph() -> None:
    content, sources = text.default()
    again, sources_again = text.default()
    assert content == again
    assert sources == sources_again
    assert len(content) > 100_000
    assert len(sources) == len(set(sources))
    manual = [name for name in sources if name.startswith("Python's manual, ")]
    assert manual == sorted(manual)
    assert sources[-len(manual) :] == manual  # the end is of one kind: what is validated on is no licence
    paragraphs = [" ".join(p.split()) for p in content.decode().split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))
    assert content.count(b"THE SOFTWARE IS PROVIDED") < len([name for name in sources if "dist-info" in name])


def test_default_text_reads_licences_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, licence in (("zebra", "Do what you like.\n"), ("ant", "Do nothing.\n\nDo what you  like.\n")):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\nLicense: no text of this\n")
        (info / "LICENSE").write_text(licence)
        (info / "license.py").write_text("code = 1\n")
        files = [f"{info.name}/{file}" for file in ("LICENSE", "METADATA", "license.py", "NOTICE")]  # one is missing
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    found = sorted(text.importlib.metadata.distributions(path=[str(tmp_path)]), key=lambda d: d.name, reverse=True)
    monkeypatch.setattr(text.importlib.metadata, "distributions", lambda: found)
    monkeypatch.setattr(text, "_python_licence", lambda: iter(()))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    content, sources = text.default()
    assert content == b"Do nothing.\n\nDo what you  like.\n"
    assert sources == ["ant-1.dist-info/LICENSE", "zebra-1.dist-info/LICENSE"]
    monkeypatch.setattr(text.importlib.metadata, "distributions", lambda: [])
    with pytest.raises(ModuleNotFoundError, match="pass a text file of your own as path"):
        text.default()


def test_blocks_predict_every_byte_but_the_first_once() -> None:
    dataset = Blocks(torch.arange(26, dtype=torch.uint8), block_size=8)
    assert len(dataset) == 3
    items = [dataset[i] for i in range(3)]
    assert [tokens.tolist() for tokens, _ in items] == [list(range(8 * i, 8 * i + 8)) for i in range(3)]
    assert torch.cat([following for _, following in items]).tolist() == list(range(1, 25))
    with pytest.raises(IndexError):
        dataset[3]
    assert len(Blocks(torch.zeros(0, dtype=torch.uint8), 8)) == 0


def test_split_is_by_position_disjoint_and_deterministic(book: Path) -> None:
    def stream(dataset: Any) -> bytes:
        return bytes(torch.cat([dataset[i][0] for i in range(len(dataset))]).tolist())

    content = book.read_bytes()
    data, again = small_data(book), small_data(book)
    train, val = stream(data.train_set), stream(data.val_set)
    assert (train, val) == (stream(again.train_set), stream(again.val_set))
    held_out = round(len(content) * 0.1)
    assert content[: len(content) - held_out].startswith(train)
    assert content[len(content) - held_out :].startswith(val)
    assert len(content) - len(train) - len(val) <= 2 * 8
    limited = small_data(book, train_limit=5)
    assert stream(limited.train_set) == train[: 5 * 8]
    assert stream(limited.val_set) == val


def test_training_order_follows_the_seed(book: Path) -> None:
    def epoch(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([tokens for tokens, _ in small_data(book).train_dataloader()])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere.txt"}, r"path='nowhere.txt' is no file"),
        ({"val_share": 1.0}, r"val_share=1.0 is not a part"),
        ({"batch_size": 4000}, r"a batch of 4000 and one block are needed"),
        ({"train_limit": 3}, r"train_limit=3\) gives 3 training"),
        ({"val_share": 1e-4}, r"and 0 validation blocks of 8 bytes"),
    ],
)
def test_what_cannot_be_served_is_named(book: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_data(book, **arguments)


def test_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match=r"call setup\('fit'\) first"):
        TextData().train_dataloader()


# --- the recipe as files ----------------------------------------------------------------------------------------------


def test_recipe_imports_nothing_of_the_library() -> None:
    sources = sorted(FOLDER.glob("*.py"))
    assert len(sources) >= 4
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            for name in imported:
                assert name.split(".")[0] not in ("lightning_perf", "recipes", "lightning_perf_recipes"), source.name


def test_configs_differ_in_callbacks_only() -> None:
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS if path.stem != "ddp"}
    assert {"baseline", "lossless", "fast", "qat", "pruned", "channels"} <= set(configs)
    callbacks = {name: config["trainer"].pop("callbacks") for name, config in configs.items()}
    assert all(config == configs["baseline"] for config in configs.values())
    assert callbacks["baseline"] == []
    assert [c["class_path"].split(".")[-1] for c in callbacks["lossless"]] == [
        "OptimizerFactory",
        "FastLogging",
        "ChannelsLast",
        "MallocTuning",
        "ExactResume",
    ]
    assert all(callbacks[name][:-1] == callbacks["lossless"] for name in ("fast", "qat", "pruned", "channels"))


def test_baseline_is_frozen() -> None:
    config = yaml.safe_load((FOLDER / "baseline.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert config["model"]["init_args"] == {
        "width": 128,
        "layers": 4,
        "heads": 4,
        "block_size": 128,
        "dropout": 0.1,
        "tied": True,
        "lr": 1e-3,
        "weight_decay": 0.1,
        "warmup_steps": 100,
    }
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["data"]["init_args"]["path"] is None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_in_a_plain_lightning_cli(config: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    cuts = config.stem == "channels"
    if cuts:
        pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")
    monkeypatch.chdir(book.parent)
    monkeypatch.setattr(sys, "argv", ["fit"])  # Lightning warns about other arguments beside args=
    arguments = ["fit", "--config", str(config), "--trainer.accelerator=cpu", "--trainer.devices=1"]
    if cuts:  # in the middle of several epochs, which fast_dev_run has not
        arguments += ["--trainer.max_epochs=2", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
        arguments += ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    else:
        arguments += ["--trainer.fast_dev_run=2"]
    width = 64 if cuts else 16  # of narrow models the output layer, which stays, has most of the products
    arguments += [f"--model.init_args.width={width}", "--model.init_args.layers=1"]
    arguments += [f"--data.init_args.path={book}", "--data.init_args.batch_size=2"]
    cli = LightningCLI(args=arguments, save_config_callback=None)
    class_path = yaml.safe_load(config.read_text())["model"]["class_path"]
    assert f"{type(cli.model).__module__}.{type(cli.model).__name__}" == class_path
    assert cli.trainer.global_step == 2
    assert torch.isfinite(cli.trainer.callback_metrics["val_bits_per_byte"])
    assert (cli.model.net.blocks[0].widen.out_features < 4 * width) == cuts
