"""The modules of this package that one of them needs, as a package of another name.

What a registered version carries along: so named, it neither hides nor is hidden by a vitrail that is installed where
the version is loaded, and versions of several revisions can be loaded side by side.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vitrail

_NAME = vitrail.__name__
_ROOT = Path(vitrail.__file__).parent


@dataclass(frozen=True)
class SourceClosure:
    """Sources by module name, and the top-level packages of others that they import."""

    sources: dict[str, str]
    imports: frozenset[str]

    @classmethod
    def of(cls, module: str) -> "SourceClosure":
        """`module`, all that it imports of this package, at its top or later, and the packages that these lie in."""
        sources: dict[str, str] = {}
        imports: set[str] = set()
        pending = [module]
        while pending:
            name = pending.pop()
            if name in sources:
                continue
            sources[name] = _file(name).read_text()
            found = set(_imported(sources[name], name))
            own = {each for each in found if each.split(".")[0] == _NAME}
            imports |= {each.split(".")[0] for each in found - own}
            pending += [*own, *filter(None, [name.rpartition(".")[0]])]
        return cls(dict(sorted(sources.items())), frozenset(imports - sys.stdlib_module_names))

    @property
    def package(self) -> str:
        """The name that the sources are given: of its own for every content."""
        digest = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in self.sources.items()).encode())
        return f"{_NAME}_served_{digest.hexdigest()[:8]}"

    def renamed(self, module: str) -> str:
        """What a module is called in the written package."""
        return self.package + module.removeprefix(_NAME)

    def write(self, folder: Path) -> Path:
        """Write the package into `folder`, and return its path."""
        for name, source in self.sources.items():
            inner = _file(name).relative_to(_ROOT)
            path = folder / self.package / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_rename(source, name, self.package))
        return folder / self.package


def _file(module: str) -> Path:
    place = _ROOT.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _imported(source: str, module: str) -> Iterator[str]:
    """Modules that the source imports; for `from a import b`, both `a` and, where it is one of ours, `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module} line {node.lineno}: a relative import"
            yield node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if node.module.split(".")[0] == _NAME and _file(name).is_file():
                    yield name


def _rename(source: str, module: str, package: str) -> str:
    """The source with the imports of this package's modules turned into those of `package`."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = re.sub(rf"\bfrom {_NAME}(?=[. ])", f"from {package}", line)
    text = "".join(lines)
    left = [each for each in _imported(text, module) if each.split(".")[0] == _NAME]
    assert not left, f"{module} imports {left} in a form other than `from {_NAME}… import …`"
    return text
