"""The backends that the options of `llmopt bench` name."""

import shlex
from dataclasses import replace

from llmopt.errors import UsageError
from llmopt.recipe.backends import OWN_BACKEND, BackendSpec


def backends_of_options(
    names: str,
    url: str | None = None,
    server_model: str | None = None,
    api_key_env: str | None = None,
    server_args: str | None = None,
) -> tuple[BackendSpec, ...]:
    """The backends of "llmopt,vllm"; the other options are about the only one that is not ours.

    Raises UsageError where there is none such, or more than one, or quotes do not match.
    """
    specs = [BackendSpec(name.strip()) for name in names.split(",") if name.strip()]
    arguments = _split(server_args)
    others = [index for index, spec in enumerate(specs) if spec.name != OWN_BACKEND]
    if any((url, server_model, api_key_env, arguments)) and len(others) != 1:
        raise UsageError(
            f"{names!r} names {len(others)} backends of others, and one URL, model, key or list of "
            "arguments was given",
            "Name one with --backend, or write a recipe.",
        )
    for index in others:
        specs[index] = replace(
            specs[index],
            url=url or None,
            model=server_model or None,
            api_key_env=api_key_env or None,
            server_args=arguments,
        )
    return tuple(specs)


def _split(arguments: str | None) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(arguments or ""))
    except ValueError as error:
        raise UsageError(
            f"--server-args is {arguments!r} ({error})", "Close what is quoted."
        ) from None
