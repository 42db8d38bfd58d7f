"""What a worker's `/metrics` says of its arms."""

from __future__ import annotations


def sample(metric: str, value: float, **labels: str) -> str:
    inside = ",".join(f'{name}="{each}"' for name, each in {"head": "click", "shard": "0", **labels}.items())
    return f"{metric}{{{inside}}} {value}\n"


def of_arm(name: str, weight: float = 0.0, ne: float = 0.8, mean: float = 0.0, half: float = 0.01) -> str:
    bounds = {"low": mean - half, "mean": mean, "high": mean + half}
    return (
        sample("heft_mixture_weight_ratio", weight, arm=name)
        + sample("heft_normalised_entropy_ratio", ne, arm=name)
        + "".join(
            sample("heft_arm_against_uniform_nats", value, arm=name, bound=bound) for bound, value in bounds.items()
        )
    )
