"""What our own code may not do, read from syntax trees: (line, rule) for each place. Names are
followed through imports and aliases."""

from __future__ import annotations

import ast
from collections.abc import Iterator

PICKLES = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "dill.load",
    "dill.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "pandas.read_pickle",
}
SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pty.spawn",
}
CODE = {"eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module"}
IMPORTS = {"importlib.import_module", "importlib.util.spec_from_file_location"}
OBJECTS = {  # collectives that pickle what they send
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
YAML = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.full_load_all",
    "yaml.unsafe_load_all",
}
HTTP = {
    "urllib.request.urlopen",
    "http.client.HTTPConnection",
    "http.client.HTTPSConnection",
    "socket.create_connection",
    *(
        f"{module}.{verb}"
        for module in ("requests", "httpx", "httpx2")
        for verb in (
            "get",
            "post",
            "put",
            "patch",
            "delete",
            "head",
            "request",
            "stream",
            "Client",
            "AsyncClient",
        )
    ),
}


def _names(tree: ast.AST) -> dict[str, str]:
    """Local name -> dotted name, of all imports wherever they stand."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.split(".")[0]: alias.name
                if alias.asname
                else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    return known


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, known)}.{node.attr}"
    return "?"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _of_call(name: str, keywords: dict[str | None, ast.expr]) -> Iterator[str]:
    last = name.rpartition(".")[2]
    if name in PICKLES:
        yield "pickle"
    if name == "torch.load" and not _is(keywords.get("weights_only"), True):
        yield "torch.load"
    if (
        name in ("numpy.load", "np.load")
        and "allow_pickle" in keywords
        and not _is(keywords["allow_pickle"], False)
    ):
        yield "pickle"
    if name in YAML:
        yield "yaml"
    if name in CODE:
        yield "eval"
    if name in IMPORTS or last == "exec_module":
        yield "import by path"
    if name in SHELLS or ("shell" in keywords and not _is(keywords["shell"], False)):
        yield "shell"
    if name == "tempfile.mktemp":
        yield "mktemp"
    if last in OBJECTS:
        yield "pickled collective"
    remote = keywords.get("trust_remote_code")
    ours = last == "from_pretrained" and name.split(".")[-2].startswith("Auto")
    if (remote is not None or ours) and not _is(remote, False):
        yield "trust_remote_code"
    if name in HTTP and "timeout" not in keywords:
        yield "no timeout"


def findings(source: str) -> list[tuple[int, str]]:
    tree = ast.parse(source)
    known = _names(tree)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value for k in node.keywords}
            found += [(node.lineno, rule) for rule in _of_call(_dotted(node.func, known), keywords)]
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            found.append((node.lineno, "all interfaces"))
    return found
