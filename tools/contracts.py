"""An import contract that import-linter does not bring: a package that may import a few others and no more.

Its own "forbidden" contract lists what must not be imported, so a module added later is allowed until
somebody remembers the list.  Here the list names what is allowed, and everything else of ours is refused,
also when it is reached through an allowed module.
"""

from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """*source* (a module or package) imports, of our root package, only itself and *allowed*.

    The root package's own ``__init__`` (it holds the version) is always allowed.  A source that does not
    exist yet keeps the contract, with a warning.
    """

    type_name = "only"

    source = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002, FBT001
        """Collect for every module reached against the contract one chain of imports that reaches it."""
        source = str(self.source)
        if source not in graph.modules:
            return ContractCheck(
                kept=True, warnings=[f"{source} does not exist yet"], metadata={"chains": []}
            )
        inside = [source, *cast("list[str]", self.allowed)]
        root = source.partition(".")[0]
        chains = []
        for module in sorted(graph.find_descendants(source) | {source}):
            for reached in sorted(graph.find_upstream_modules(module)):
                if reached == root or any(_within(reached, package) for package in inside):
                    continue
                chains.append(graph.find_shortest_chain(importer=module, imported=reached))
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each offending chain on one line."""
        for chain in check.metadata["chains"]:
            output.print_error(" -> ".join(chain), bold=False)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
