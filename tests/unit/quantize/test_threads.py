from collections.abc import Iterator

import pytest
import torch

from llmopt.quantize.threads import single_thread


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_three_threads")
def test_number_of_threads_is_restored_after_a_function_and_after_an_error() -> None:
    seen: list[int] = []

    @single_thread()
    def body(fail: bool) -> None:
        seen.append(torch.get_num_threads())
        if fail:
            raise RuntimeError("inside")

    body(fail=False)
    assert torch.get_num_threads() == 3
    with pytest.raises(RuntimeError, match="inside"):
        body(fail=True)
    assert torch.get_num_threads() == 3
    assert seen == [1, 1]
