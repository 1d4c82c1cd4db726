"""`llmopt generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmopt.engine.request import RequestOutput


def generate(
    model: Annotated[str, typer.Argument(help="Directory, GGUF file, hub id or `smollm2-135m`.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; repeat for a batch.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A text file with one prompt per line.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Wrap prompts in the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens up to this.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Random stream; a fresh one if absent.")] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Do not stop at end-of-text.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    max_num_seqs: Annotated[int, typer.Option(help="Most prompts in one step.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Token budget of a step.")] = 512,
    json: Annotated[bool, typer.Option("--json", help="Print the outputs as JSON.")] = False,
) -> None:
    """Complete prompts with llmopt's own runtime.

    Examples:

        llmopt generate smollm2-135m --chat -p "What is the capital of Japan?"

        llmopt generate ./smollm2-w4 -p "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1
    """
    from llmopt.cli.progress import StageProgress
    from llmopt.engine.llm import LLM
    from llmopt.engine.request import SamplingParams, StepOutput
    from llmopt.models.resolve import resolve_model

    prompts = _read_prompts(prompt, prompts_file)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    with StageProgress() as progress:
        with progress.stage(f"find {model}") as advance:
            path = resolve_model(model, advance)
        with progress.stage("load it"):
            llm = LLM(
                path,
                dtype=dtype,
                device=device,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
            )
    encoded = llm.encode(prompts)
    if chat:
        turns = [[{"role": "user", "content": text}] for text in prompts]
        encoded = [llm.tokenizer.apply_chat_template(turn) for turn in turns]
    steps: list[list[StepOutput]] = [[] for _ in prompts]
    interrupted = False
    try:
        with StageProgress() as progress, progress.stage("generate"):
            for done, (index, step) in enumerate(llm.stream(encoded, params), start=1):
                steps[index].append(step)
                progress.stage_advanced(done, max_tokens * len(prompts), "tokens")
    except KeyboardInterrupt:
        interrupted = True
    outputs = [llm.collect(i, ids, steps[i]) for i, ids in enumerate(encoded)]
    _show(prompts, outputs, chat=chat, json=json)
    if interrupted:
        raise KeyboardInterrupt


def _show(prompts: list[str], outputs: list["RequestOutput"], *, chat: bool, json: bool) -> None:
    """Print what was generated, all of it or what there was of it when it was interrupted."""
    from llmopt.cli.output import print_json

    if json:
        print_json(outputs)
        return
    for text, output in zip(prompts, outputs, strict=True):
        if len(prompts) > 1:
            typer.echo(f">>> {text}")
        typer.echo(output.text if chat else text + output.text)


def _read_prompts(prompt: list[str] | None, prompts_file: Path | None) -> list[str]:
    from llmopt.errors import UsageError

    prompts = list(prompt or [])
    if prompts_file is not None:
        try:
            lines = prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{prompts_file} cannot be read ({error})", "Give a UTF-8 text file."
            ) from error
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError("there is no prompt", 'Give --prompt "..." or --prompts-file FILE.')
    return prompts
