"""What an isolated environment consists of, and what making it takes.

Data only; knows nothing of where environments are kept or of the software in them. The law: every
requirement is pinned, so the same name is the same software tomorrow.
"""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Environment:
    """A pinned requirement set with a name.

    package, module: the distribution that it is made for, and what is imported to prove it works,
        unless `program` is run
    torch: the torch requirement, installed first and held by all later steps; None: not needed
    requirements: installed with their dependencies
    bare_requirements: installed without, because what they ask for contradicts the rest
    removed: distributions that were brought along, do not work with the rest, and go again
    stand_ins: distributions that are there by name and version only, since the software asks for
        itself by a name that it was not published under
    program: what is run with `--version` in place of the import
    packaged_program: where `program` is in the folder of `module`, if pip does not put it in place
    variables: set whenever the environment's python runs
    disk_gb, minutes: what making it took with a CPU build of torch on two cores, rounded up
    newest_python: (major, minor) of the last Python that its packages install on
    note: what a user should know before choosing it
    """

    name: str
    purpose: str
    package: str
    module: str
    requirements: tuple[str, ...]
    disk_gb: float
    minutes: int
    torch: str | None = None
    bare_requirements: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    program: str | None = None
    packaged_program: str | None = None
    variables: tuple[tuple[str, str], ...] = ()
    needs_compiler: bool = False
    needs_cuda: bool = False
    newest_python: tuple[int, int] | None = None
    note: str = ""

    @property
    def pinned(self) -> tuple[str, ...]:
        """All requirements, in the order in which they are installed."""
        torch = () if self.torch is None else (self.torch,)
        return (*torch, *self.requirements, *self.bare_requirements)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pinned requirements, and of what is changed after them."""
        changes = (self.removed, self.stand_ins) if self.removed or self.stand_ins else ()
        return hashlib.sha256(json.dumps([*self.pinned, *changes]).encode()).hexdigest()

    @property
    def override_variable(self) -> str:
        """The environment variable that names a python to use in place of one made here."""
        return "LLMOPT_ENVIRONMENT_" + "".join(
            letter if letter.isalnum() else "_" for letter in self.name.upper()
        )
