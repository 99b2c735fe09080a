"""What other systems compute for one recipe, each in float64 and branch for branch as its source
has it.
"""

import math

PEAK, END, W, T = 3e-3, 1e-4, 10, 100
D = T - W


def bert(step: int) -> float:
    decayed = (PEAK - 0.0) * (1 - min(step, T) / T) ** 1.0 + 0.0
    return PEAK * step / W if step < W else decayed


def tf_models(step: int) -> float:
    return PEAK * (step / W) ** 2 if step < W else PEAK * (1 - min(step, T) / T)


def tensorflow(step: int, *, cycle: bool) -> float:
    length = T
    if cycle:
        length = T * (1 if step == 0 else math.ceil(step / T))
    return (PEAK - END) * (1 - min(step, length) / length) ** 2.0 + END


def keras_stairs(step: int) -> float:
    return PEAK * 0.9 ** math.floor(step / 30)


def hf_warmup(step: int) -> float:
    return PEAK * step / max(1, W)


def hf_linear(step: int) -> float:
    return hf_warmup(step) if step < W else PEAK * max(0.0, (T - step) / max(1, T - W))


def hf_cosine(step: int) -> float:
    if step < W:
        return hf_warmup(step)
    return PEAK * max(0.0, 0.5 * (1 + math.cos(math.pi * 0.5 * 2.0 * (step - W) / max(1, T - W))))


def hf_polynomial(step: int) -> float:
    if step < W:
        return hf_warmup(step)
    if step > T:
        return END
    return (PEAK - END) * (1 - (step - W) / (T - W)) ** 2.0 + END


def hf_inverse_sqrt(step: int, timescale: int) -> float:
    return hf_warmup(step) if step < W else PEAK / math.sqrt((step + timescale - W) / timescale)


def pytorch(step: int) -> float:
    if step < W:
        return PEAK * (0.1 + (1 - 0.1) * min(step, W) / W)
    return PEAK * (1 - min(step - W, D) / D) ** 0.9


def t5x(step: int) -> float:
    return max(0.5 * min(1.0, step / W) / math.sqrt(max(step, W)), 1e-8)


def big_vision(step: int) -> float:
    rate = PEAK / math.sqrt(1 + (step - W) / 50) if step >= W else PEAK
    return rate * min(1.0, step / W)


def megatron(step: int, style: str) -> float:
    if step <= W:
        return 1e-5 + (PEAK - 1e-5) * step / W
    if step > T:
        return END
    start = T - 20
    share = (step - start) / 20
    coefficient = {
        "linear": 1 - (step - W) / (T - W),
        "cosine": 0.5 * (math.cos(math.pi * (step - W) / (T - W)) + 1),
        "WSD linear": 1 - share,
        "WSD cosine": 0.5 * (math.cos(math.pi * share) + 1),
        "WSD exponential": 2.0 * 0.5**share - 1,
        "WSD minus_sqrt": 1 - math.sqrt(max(share, 0.0)),
    }[style]
    return END + (1.0 if style.startswith("WSD") and step <= start else coefficient) * (PEAK - END)


def torchtitan(step: int) -> float:
    """Theirs goes below zero after T."""
    return PEAK * (step + 1) / W if step < W else PEAK * max(0.0, 1 - (step - W) / (T - W))


def nanogpt(step: int) -> float:
    if step < W:
        return PEAK * (step + 1) / (W + 1)
    if step > T:
        return END
    return END + 0.5 * (1 + math.cos(math.pi * (step - W) / (T - W))) * (PEAK - END)


def minicpm(step: int) -> float:
    if step < W:
        return step / W * PEAK
    return PEAK if step < T else PEAK * 0.5 ** ((step - T) / 20)


def big_vision_cooldown(step: int, cooldown: int) -> float:
    return big_vision(step) * min(1.0, (T - step) / cooldown)


def levanter_inverse_sqrt(step: int, timescale: int) -> float:
    if step < W:
        return PEAK * step / W
    decay = min(
        1.0, 1.0 / math.sqrt(max(step - W + W, 1) / timescale)
    )  # Their count begins after the warm-up.
    return max(PEAK * decay, END)


def levanter_cosine(step: int) -> float:
    if step < W:
        return PEAK * step / W
    ratio, share = END / PEAK, min(step - W, D) / D
    return PEAK * ((1 - ratio) * 0.5 * (1 + math.cos(math.pi * share)) + ratio)


def maxtext(step: int) -> float:
    if step < W:
        return PEAK * min(step, W - 1) / (W - 1)
    if step >= T:
        return 0.0
    share = 0.5 * (math.cos(math.pi * (step - W) / (T - W - 1)) + 1)
    return PEAK * share + END * (1 - share)


def easylm_rate(step: int) -> float:
    return PEAK / 0.01 / math.sqrt(max(step, W))


def purejaxrl(step: int, minibatches: int, epochs: int, updates: int) -> float:
    return PEAK * (1.0 - (step // (minibatches * epochs)) / updates)


def flax_rsqrt(step: int) -> float:
    return (
        PEAK * step / W if step < W else PEAK * (step - W + W) ** -0.5 * W**0.5
    )  # Their count begins after the warm-up.


def flax_cosine(step: int, per_epoch: int, warmup_epochs: int, epochs: int) -> float:
    warmup, length = warmup_epochs * per_epoch, max(epochs - warmup_epochs, 1) * per_epoch
    if step < warmup:
        return PEAK * step / warmup
    return PEAK * 0.5 * (1 + math.cos(math.pi * min(step - warmup, length) / length))


def flax_stepped(step: int, per_epoch: int) -> float:
    boundaries = [30 * per_epoch, 60 * per_epoch, 80 * per_epoch]
    value = [PEAK * decay for decay in (1.0, 0.1, 0.01, 0.001)][
        sum(boundary < step for boundary in boundaries)
    ]
    return value * min(1.0, step / 5.0 / per_epoch)


# Clipping, of the numbers of one gradient


def tensorflow_clip(grads: list[float], bound: float) -> list[float]:
    norm = math.sqrt(sum(g * g for g in grads))
    return [g * (bound * min(1 / norm, 1 / bound)) for g in grads]


def pytorch_clip(grads: list[float], bound: float) -> list[float]:
    norm = math.sqrt(sum(g * g for g in grads))
    return [g * min(1.0, bound / (norm + 1e-6)) for g in grads]
