"""How much an evaluation computes at a time, for those who evaluate and for plans: `launch.eval_batch`, or what suits.

Kernel launches limit a small model: the more at a time the better. Of a reply's tokens all are computed one by one, of
candidates all at once. Arithmetic only, no torch.

parameters: of the base. device: "cuda" or "cpu".
"""

from __future__ import annotations

from dual_lora.config.launch_settings import LaunchConfig

_SMALL = 1e9  # parameters
_ON_CPU = 16
_SEQUENCES, _SEQUENCES_OF_SMALL, _CANDIDATES_OF_SMALL = 128, 512, 2048
_CLASSIFIED = 64
_LEAST_IN_TRAINING = 8
# Tokens of a batch of the validation loss, padding included, on a GPU and elsewhere.
_VALIDATION_TOKENS, _VALIDATION_TOKENS_OF_SMALL, _VALIDATION_TOKENS_ON_CPU = 4096, 16_384, 1024
# Of a batch of candidates, padding included: keys and values are kept of all tokens, logits are 2 or 4 × vocabulary
# bytes each.
MOST_TOKENS, MOST_LOGITS = 131_072, 32_768
# Rows of logits that become float32 log-probabilities at a time: 4 × vocabulary bytes each.
LOGITS_AT_ONCE = 1024


def prompts(launch: LaunchConfig, beams: int, *, parameters: int, device: str = "cuda") -> int:
    """Return how many prompts are answered at a time, each by `beams` sequences."""
    on_gpu = _SEQUENCES_OF_SMALL if parameters < _SMALL else _SEQUENCES
    return launch.eval_batch or max(1, (on_gpu if device == "cuda" else _ON_CPU) // beams)


def candidates(launch: LaunchConfig, *, parameters: int, device: str = "cuda") -> int:
    """Return how many candidates are ranked at a time; fewer if they are long."""
    on_gpu = _CANDIDATES_OF_SMALL if parameters < _SMALL else _SEQUENCES
    return launch.eval_batch or (on_gpu if device == "cuda" else _ON_CPU)


def validation_tokens(*, parameters: int, device: str = "cuda") -> int:
    """Return the most tokens of a batch of the validation loss after training."""
    on_gpu = _VALIDATION_TOKENS_OF_SMALL if parameters < _SMALL else _VALIDATION_TOKENS
    return on_gpu if device == "cuda" else _VALIDATION_TOKENS_ON_CPU


def validated_in_training(launch: LaunchConfig, per_device: int) -> int:
    """Return the rows of a batch whose loss is computed while training."""
    return launch.eval_batch or max(per_device, _LEAST_IN_TRAINING)


def classified(launch: LaunchConfig) -> int:
    """Return how many texts are classified at a time."""
    return launch.eval_batch or _CLASSIFIED
