"""Which values a picture shows."""

import warmclip_jax as wc
from warmclip_jax._pictures._limits import limits
from warmclip_jax._pictures._sampling import sampled


def shown(*schedules: wc.Schedule, log_scale: bool = False, steps: int = 1000) -> list[float]:
    return [float(f"{end:.3g}") for end in limits(sampled(schedules, steps), log_scale)]


def test_zero_is_shown_where_it_is_near():
    for first, last, ends in [
        (0.1, 0.5, [0, 0.5]),
        (0.9, 0.999, [0.9, 0.999]),
        (-0.1, -0.5, [-0.5, 0]),
        (-0.9, -0.8, [-0.9, -0.8]),
        (-1.0, 2.0, [-1, 2]),
        (0.3, 0.3, [0, 0.3]),
    ]:
        run = wc.linear_warmup(init_value=first, peak_value=last, warmup_steps=1000)
        assert shown(run) == ends


def test_a_logarithmic_scale_has_room_for_what_takes_up_width():
    growth = wc.exponential_decay(init_value=1e-7, decay_steps=1000, decay_rate=1e8, end_value=10.0)
    assert shown(growth, log_scale=True) == [1e-7, 10]
    assert shown(growth, wc.constant(value=1e-9), log_scale=True) == [1e-9, 10]
    for steps in (1000, 999_999, 10**7):
        decay = wc.cosine_decay(init_value=1.0, decay_steps=steps)
        # At 98 % of the way it has fallen to sin(pi / 100) ** 2, which is 1e-3.
        low, high = shown(decay, wc.constant(value=-1.0), log_scale=True, steps=steps - 1)
        assert 3e-4 < low < 4e-4
        assert high == 1
