"""The rotary positions of a model, from its config.json.

Knows nothing of tensors. The law: a rule that is accepted is computed exactly up to the model's
maximum length, which shrinks where it is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.errors import ModelError
from llmopt.layers.rotary import SUPPORTED_ROPE_TYPES
from llmopt.models.architectures import FULL, SLIDING, Architecture, Settings

_LONG = "longrope"


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding: its base, the rule that stretches it (None: none), and the share of a
    head's channels that it rotates.
    """

    theta: float
    scaling: Mapping[str, Any] | None = None
    share: float = 1.0

    def num_channels(self, head_dim: int) -> int:
        """The channels of a head that are rotated, in pairs. Raises ModelError for half a pair."""
        num_channels = int(head_dim * self.share)
        if num_channels % 2:
            raise ModelError(
                f"config.json rotates {num_channels} of the {head_dim} channels of a head, and they"
                " are rotated in pairs",
                "Fetch the model again.",
            )
        return num_channels


def read_ropes(parts: Architecture, settings: Settings) -> tuple[Rope, ...]:
    """None for learned positions, one rope, or that of FULL and that of SLIDING layers.

    transformers 5 keeps theta and scaling in `rope_parameters` (per kind of layer where those
    differ), older files apart. Raises ModelError for an unknown rule.
    """
    if parts.first_position is not None:
        return ()
    parameters = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    theta = settings.get("rope_theta") or 10_000.0
    if not parts.separate_ropes:
        return (_rope(parts, settings, parameters or scaling, theta),)
    return (
        _rope(parts, settings, parameters.get(FULL) or scaling, theta),
        _rope(parts, settings, parameters.get(SLIDING) or {}, settings["rope_local_base_freq"]),
    )


def max_positions(ropes: tuple[Rope, ...], settings: Settings) -> int:
    """The longest text that the ropes are computed for: with factors of two lengths, the shorter,
    because keys that are in the cache cannot change over to the factors of the longer one.
    """
    limits = [
        int(rope.scaling["original_max_position_embeddings"])
        for rope in ropes
        if rope.scaling is not None and rope.scaling["rope_type"] == _LONG
    ]
    return min([int(settings["max_position_embeddings"]), *limits])


def _rope(
    parts: Architecture, settings: Settings, parameters: Settings, default_theta: float
) -> Rope:
    theta = float(parameters.get("rope_theta") or default_theta)
    share = parameters.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0
    if not 0 < float(share) <= 1:
        raise ModelError(
            f"config.json has the partial_rotary_factor {share}",
            "Rotary positions turn more than 0 and at most 1 of a head: fetch the model again.",
        )
    stated = parameters.get("rope_type") or parameters.get("type") or "default"
    rope_type = parts.rope_types.get(stated, stated)
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"the rotary embedding type {rope_type} is not supported",
            f"Supported: {', '.join(SUPPORTED_ROPE_TYPES)}.",
        )
    if rope_type == "default":
        return Rope(theta, None, float(share))
    return Rope(theta, _complete(rope_type, parameters, settings), float(share))


def _complete(rope_type: str, parameters: Settings, settings: Settings) -> dict[str, Any]:
    """The rule with the lengths that it may leave to the rest of config.json."""
    scaling = {**parameters, "rope_type": rope_type}
    if rope_type in (_LONG, "yarn"):
        longest = settings["max_position_embeddings"]
        trained = parameters.get("original_max_position_embeddings")
        trained = trained or settings.get("original_max_position_embeddings") or longest
        scaling["original_max_position_embeddings"] = trained
        if parameters.get("factor") is None:
            scaling["factor"] = longest / trained
    return scaling
