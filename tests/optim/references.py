"""The optimizers of our own once more, slowly: the papers' formulas line by line, one tensor at a time.

Each function takes starting points, a function from (step, parameters) to gradients, and the settings; it returns the
parameters after each step. Nothing here is shared with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Gradients = Callable[[int, list[Tensor]], list[Tensor]]


def lion(
    start: list[Tensor], gradients: Gradients, steps: int, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> list[Tensor]:
    """Algorithm 2 of arXiv 2302.06675."""
    theta = [each.clone() for each in start]
    m = [torch.zeros_like(each) for each in start]
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t, theta)):
            c = betas[0] * m[i] + (1 - betas[0]) * g
            theta[i] = theta[i] - lr * (torch.sign(c) + weight_decay * theta[i])
            m[i] = betas[1] * m[i] + (1 - betas[1]) * g
    return theta


def ademamix(
    start: list[Tensor],
    gradients: Gradients,
    steps: int,
    *,
    lr: float,
    betas: tuple[float, float, float],
    alpha: float,
    eps: float,
    weight_decay: float,
    ramp: int | None,
) -> list[Tensor]:
    """Algorithm 1 and equations 3 and 4 of arXiv 2409.03137."""
    theta = [each.clone() for each in start]
    m1, m2, v = ([torch.zeros_like(each) for each in start] for _ in range(3))
    b1, b2, b3 = betas
    for t in range(1, steps + 1):
        alpha_t, b3_t = alpha, b3
        if ramp is not None:
            alpha_t = min(t * alpha / ramp, alpha)
            x = t / ramp
            if x < 1:
                b3_t = min(b3, math.exp(math.log(b1) * math.log(b3) / ((1 - x) * math.log(b3) + x * math.log(b1))))
        for i, g in enumerate(gradients(t, theta)):
            m1[i] = b1 * m1[i] + (1 - b1) * g
            m2[i] = b3_t * m2[i] + (1 - b3_t) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            m1_hat, v_hat = m1[i] / (1 - b1**t), v[i] / (1 - b2**t)
            theta[i] = theta[i] - lr * ((m1_hat + alpha_t * m2[i]) / (v_hat.sqrt() + eps) + weight_decay * theta[i])
    return theta


def prodigy(
    start: list[Tensor],
    gradients: Gradients,
    steps: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    d0: float,
    d_coef: float,
) -> tuple[list[Tensor], float]:
    """Algorithm 4 of arXiv 2306.06101; returns d too."""
    theta = [each.clone() for each in start]
    m, v, s = ([torch.zeros_like(each) for each in start] for _ in range(3))
    d, r = d0, 0.0
    b1, b2 = betas
    root = math.sqrt(b2)
    for t in range(1, steps + 1):
        found = gradients(t, theta)
        inner = sum((g * (first - now)).sum().item() for g, first, now in zip(found, start, theta, strict=True))
        r = root * r + (1 - root) * lr * d**2 * inner
        for i, g in enumerate(found):
            s[i] = root * s[i] + (1 - root) * lr * d**2 * g
            m[i] = b1 * m[i] + (1 - b1) * d * g
            v[i] = b2 * v[i] + (1 - b2) * d**2 * g**2
            theta[i] = theta[i] - lr * d * (m[i] / (v[i].sqrt() + d * eps) + weight_decay * theta[i])
        d = max(d, d_coef * r / sum(each.abs().sum().item() for each in s))
    return theta, d


def schedule_free(
    start: list[Tensor],
    gradients: Gradients,
    steps: int,
    *,
    lr: Callable[[int], float],
    beta: float,
    beta2: float | None,
    eps: float,
    weight_decay: float,
    r: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """Algorithm 1 of arXiv 2405.15682 with x, y and z spelled out; ``beta2=None`` is SGD. Returns y and x."""
    x = [each.clone() for each in start]
    z = [each.clone() for each in start]
    v = [torch.zeros_like(each) for each in start]
    y = [each.clone() for each in start]
    total, largest = 0.0, 0.0
    for t in range(1, steps + 1):
        gamma = lr(t)
        largest = max(largest, gamma)
        weight = t**r * largest**2
        total += weight
        for i, g in enumerate(gradients(t, y)):
            if beta2 is not None:
                v[i] = beta2 * v[i] + (1 - beta2) * g**2
                g = g / ((v[i] / (1 - beta2**t)).sqrt() + eps)
            z[i] = z[i] - gamma * (g + weight_decay * y[i])
            c = weight / total
            x[i] = (1 - c) * x[i] + c * z[i]
        y = [(1 - beta) * z_i + beta * x_i for z_i, x_i in zip(z, x, strict=True)]
    return y, x


def zeroth_power(g: Tensor, steps: int = 5) -> Tensor:
    """The quintic iteration of https://kellerjordan.github.io/posts/muon/."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(x.norm().item(), 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def adamw(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Algorithm 2 of arXiv 1711.05101, with the decay scaled by lr as in torch."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return theta - lr * (m_hat / (v_hat.sqrt() + eps) + decay * theta), m, v


def muon(
    start: list[Tensor],
    gradients: Gradients,
    steps: int,
    *,
    matrices: list[int],
    lr: float,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    nesterov: bool = True,
    matched: bool = True,
) -> list[Tensor]:
    """Equation 4 of arXiv 2502.16982 for matrices, AdamW for the rest."""
    theta = [each.clone() for each in start]
    b, v = ([torch.zeros_like(each) for each in start] for _ in range(2))
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t, theta)):
            if not matrices[i]:
                theta[i], b[i], v[i] = adamw(theta[i], g, b[i], v[i], t, lr, betas, eps, weight_decay)
                continue
            b[i] = momentum * b[i] + g
            u = g + momentum * b[i] if nesterov else b[i]
            parts = []
            for part in u.reshape(u.shape[0], -1).chunk(matrices[i]):
                rows, columns = part.shape
                scale = 0.2 * math.sqrt(max(rows, columns)) if matched else math.sqrt(max(1, rows / columns))
                parts.append(scale * zeroth_power(part))
            theta[i] = theta[i] - lr * (torch.cat(parts).reshape(g.shape) + weight_decay * theta[i])
    return theta


def soap(
    start: list[Tensor],
    gradients: Gradients,
    steps: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    frequency: int,
) -> list[Tensor]:
    """Algorithm 3 of arXiv 2409.11321, with bias correction, sorted columns, and AdamW for vectors."""
    theta = [each.clone() for each in start]
    m, v, left, right, q_left, q_right = ([torch.zeros(()) for _ in start] for _ in range(6))
    b1, b2 = betas
    for t in range(1, steps + 1):
        for i, raw in enumerate(gradients(t, theta)):
            if raw.ndim < 2:
                if t == 1:
                    m[i], v[i] = torch.zeros_like(raw), torch.zeros_like(raw)
                theta[i], m[i], v[i] = adamw(theta[i], raw, m[i], v[i], t, lr, betas, eps, weight_decay)
                continue
            g = raw.reshape(raw.shape[0], -1)
            if t == 1:
                m[i], v[i] = torch.zeros_like(g), torch.zeros_like(g)
                left[i], right[i] = (1 - b2) * g @ g.T, (1 - b2) * g.T @ g
                q_left[i] = torch.linalg.eigh(left[i]).eigenvectors.flip(1)
                q_right[i] = torch.linalg.eigh(right[i]).eigenvectors.flip(1)
            else:
                left[i] = b2 * left[i] + (1 - b2) * g @ g.T
                right[i] = b2 * right[i] + (1 - b2) * g.T @ g
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * (q_left[i].T @ g @ q_right[i]) ** 2
            n = (q_left[i].T @ (m[i] / (1 - b1**t)) @ q_right[i]) / ((v[i] / (1 - b2**t)).sqrt() + eps)
            step = q_left[i] @ n @ q_right[i].T
            theta[i] = theta[i] - lr * (step.reshape(raw.shape) + weight_decay * theta[i])
            if t % frequency == 0:
                order = torch.argsort(torch.diag(q_left[i].T @ left[i] @ q_left[i]), descending=True)
                q_left[i] = torch.linalg.qr(left[i] @ q_left[i][:, order]).Q
                v[i] = v[i][order]
                order = torch.argsort(torch.diag(q_right[i].T @ right[i] @ q_right[i]), descending=True)
                q_right[i] = torch.linalg.qr(right[i] @ q_right[i][:, order]).Q
                v[i] = v[i][:, order]
    return theta
