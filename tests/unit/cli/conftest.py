import pytest

from llmopt.cli.evaluate_options import Evaluation


@pytest.fixture(scope="session")
def plain_evaluation() -> Evaluation:
    """`llmopt eval m --base b` without further options."""
    return Evaluation(
        model="m",
        base="b",
        text="bundled",
        protocol="windows",
        window=None,
        num_windows=None,
        until_ci=None,
        divergence=True,
        noise=True,
        cache=True,
        backend="llmopt",
        dtype="auto",
        base_dtype="float32",
        activations="auto",
        device="cpu",
        tasks=None,
        requests=(),
        limit=None,
        greedy=False,
        prompts=None,
        atlas=False,
        atlas_detail=False,
        html=None,
        out=None,
        json=False,
    )
