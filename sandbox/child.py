"""The untrusted side: one process that runs one program and reports values.

It is forked from the zygote, locks itself down, acknowledges that, and only then reads the
program from its code pipe. Everything it says from there on is the program's word: frames are
data for the parent to decode and compare. Expected values, hidden inputs and the source of tests
never come here; exit statuses and stdout prove nothing.

Frames, both ways: four bytes of length (big endian), then JSON.

    in   {job}, then {"calls": [[entry, args, kwargs], …], "last"} again and again, then the end
    out  {"armed"} {"loaded"} {"value": form, "i": n} | {"raised": [type, text], "i": n} …
         {"outputs"} {"description"} {"done"}

A test module (`mode: test`) runs here as well, in a sandbox of its own: names that it does not
define become proxies, and each use of one is a frame out and a frame in.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import io
import json
import os
import select
import struct
import symtable
import sys
import types
from typing import Any, NoReturn

from sandbox import describe, isolation, seccomp, values

CODE_FD, RESULT_FD = 3, 4
MAX_FRAME = 1 << 20
MAX_FRAME_IN = 64 << 20
MAX_MESSAGE = 2_000
PROGRAM = "<program>"

_write = os.write
_read = os.read
_exit = os._exit
_dumps = json.dumps
_loads = json.loads


class Closed(Exception):
    """The parent closed the code pipe: nothing more is wanted."""


def live(
    descriptors: list[int],
    limits: dict[str, int],
    place: isolation.Place,
    ruleset: isolation.Ruleset | None,
    filters: seccomp.Filter | None,
) -> NoReturn:
    """Lock down, acknowledge, run one program, end. Called in a fresh fork of the zygote.

    Args:
        descriptors: stdin, stdout, stderr, code and result, in this order.
        limits: The integer fields of `types.Limits`.
        place: Where this zygote keeps programs.
        ruleset: Landlock rules, ready to be entered; None only without isolation or inside a
            runtime whose kernel has none.
        filters: The system-call filter, without a pid.
    """
    try:
        ruleset = _arrange(descriptors, ruleset)
        os.setsid()
        os.umask(0o077)
        isolation.limit(limits, count_threads=place.counts_threads)
        isolation.lock_down(place, ruleset, filters)
        # Whatever does not depend on the program is done before it arrives.
        os.chdir(place.scratch)
        _streams()
        _seed(int.from_bytes(os.urandom(4), "big"))
        send({"armed": True})
        job = receive()
    except Closed:
        _exit(0)
    except BaseException as error:
        # Before the acknowledgement this is the sandbox's fault, and the parent says so.
        with_text = f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
        send({"failed": with_text})
        _exit(1)
    try:
        _run(job)
    except BaseException:
        # Nobody must ever unwind into the zygote's code. Seen from outside: an early exit.
        _exit(70)
    _exit(0)


def _arrange(descriptors: list[int], ruleset: isolation.Ruleset | None) -> isolation.Ruleset | None:
    """Put the five pipes at 0 to 4, keep the ruleset at 5, close everything else."""
    wanted = [*descriptors, *([ruleset.descriptor] if ruleset is not None else [])]
    # Out of the way first: any of them may sit on a number that is a target.
    floor = max(*wanted, 16) + 1
    for offset, descriptor in enumerate(wanted):
        os.dup2(descriptor, floor + offset)
    for target in range(len(wanted)):
        os.dup2(floor + target, target)
    os.closerange(len(wanted), 1 << 20)
    return isolation.Ruleset(5, ruleset.abi) if ruleset is not None else None


# --- frames ------------------------------------------------------------------------------------


_held = bytearray()


def send(frame: dict[str, Any], *, hold: bool = False) -> None:
    """Write one frame; one that would be too big becomes an opaque value.

    Args:
        frame: What to say.
        hold: Keep it back and write it with the next one: a wake-up of the parent less. Only for
            what may be lost when the program crashes before then.
    """
    data = _dumps(frame).encode("ascii")
    if len(data) > MAX_FRAME:
        small = {**frame, "value": {"$opaque": "too big"}} if "value" in frame else {"too_big": 1}
        data = _dumps(small).encode("ascii")
    _held.extend(struct.pack(">I", len(data)) + data)
    while _held and not hold:
        del _held[: _write(RESULT_FD, _held)]


def receive() -> dict[str, Any]:
    """Read one frame from the parent.

    Raises:
        Closed: when the parent has nothing more to say.
    """
    size = struct.unpack(">I", _exactly(4))[0]
    frame = _loads(_exactly(min(size, MAX_FRAME_IN)))
    return dict(frame)


def _exactly(size: int) -> bytes:
    parts = []
    while size:
        part = _read(CODE_FD, min(size, 1 << 20))
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- one program -------------------------------------------------------------------------------


def _run(job: dict[str, Any]) -> None:
    if job.get("seed") is not None:
        _seed(job["seed"])
    name = "__main__" if job["mode"] in ("script", "cell") else "program"
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["program.py"]
    namespace = module.__dict__
    namespace["__builtins__"] = builtins
    description = None
    try:
        if job.get("variables"):
            given = {k: values.decode(v) for k, v in job["variables"].items()}
            namespace.update({k: values.revive(v) for k, v in given.items()})
        if job.get("setup"):
            exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), namespace)
        if job["mode"] == "test":
            _test(job, namespace)
            return
        if job.get("describe"):
            description = describe.Recorder(job["code"], namespace)
            description.execute(PROGRAM)
        else:
            exec(compile(job["code"], PROGRAM, "exec", dont_inherit=True), namespace)
        if job["mode"] == "script":
            _end_of_script()
    except SystemExit as error:
        if job["mode"] != "script" or error.code not in (None, 0):
            _raised(error)
            return
        _end_of_script()
    except BaseException as error:
        _raised(error)
        return
    send({"loaded": True}, hold=job["mode"] == "calls")
    if job["mode"] == "calls":
        _serve(job, namespace)
    if job.get("outputs"):
        _report_outputs(job["outputs"], namespace)
    if description is not None:
        _report_description(description)
    _flush()
    send({"done": True})


def _streams() -> None:
    """Fresh text streams: the zygote's were opened on /dev/null and remember that."""
    sys.stdin = io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "surrogateescape"
    )
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8", "surrogateescape"
    )
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)),
        "utf-8",
        "backslashreplace",
        line_buffering=True,
    )
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))


def _seed(seed: int) -> None:
    """Children of one zygote share its generators' state: make each run its own."""
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy")
    if random is not None:
        random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        # The program may have put anything there, or closed it.
        with contextlib.suppress(BaseException):
            stream.flush()  # type: ignore[union-attr]


def _end_of_script() -> None:
    """What an interpreter does at the end: wait for threads, run exit handlers."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def _raised(error: BaseException) -> None:
    _flush()
    send({"raised": _describe_error(error)})
    send({"done": True})


def _describe_error(error: BaseException) -> list[str]:
    """Class name and text of an exception, with the program's line; both are its own word."""
    try:
        text = str(error)
        text = text[:MAX_MESSAGE] if type(text) is str else ""
    except BaseException:
        text = ""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == PROGRAM:
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is not None:
        text = f"{text[: MAX_MESSAGE - 20]} (line {line})" if text else f"line {line}"
    return [values.class_name(type(error)), text]


def _serve(job: dict[str, Any], namespace: dict[str, Any]) -> None:
    """Answer calls until the parent closes the pipe."""
    number = 0
    while True:
        if _held and not select.select([CODE_FD], [], [], 0)[0]:
            # Nothing to do yet: the parent may be waiting for what was held back.
            flush_held()
        try:
            frame = receive()
        except Closed:
            return
        if "get" in frame:
            _answer_name(frame["get"], namespace)
            continue
        calls, last = frame["calls"], bool(frame.get("last"))
        for place, call in enumerate(calls, 1):
            _answer(call, namespace, number, hold=last and place == len(calls))
            number += 1
        if last:
            return


def flush_held() -> None:
    """Write what was held back."""
    while _held:
        del _held[: _write(RESULT_FD, _held)]


def _answer(call: list[Any], namespace: dict[str, Any], number: int, *, hold: bool) -> None:
    entry, forms, named = call
    try:
        args = [values.revive(values.decode(form)) for form in forms]
        kwargs = {name: values.revive(values.decode(form)) for name, form in named.items()}
        if entry in namespace:
            function = namespace[entry]
        else:
            function = _entry(entry, namespace, args, kwargs)
        form = values.encode(function(*args, **kwargs))
    except BaseException as error:
        frame: dict[str, Any] = {"raised": _describe_error(error), "i": number}
    else:
        frame = {"value": form, "i": number}
    send(frame, hold=hold)


def _entry(
    name: str | None, namespace: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
) -> Any:
    """Find the function that is meant when the specification does not name one.

    Of the functions that the program defines and that take these arguments, the last one:
    helpers come first.
    """
    import inspect

    if name is not None:
        raise NameError(f"name {name!r} is not defined")
    fitting = []
    for key, value in namespace.items():
        if type(value) is not types.FunctionType or key.startswith("_"):
            continue
        if value.__module__ != namespace["__name__"]:
            continue
        try:
            inspect.signature(value).bind(*args, **kwargs)
        except TypeError:
            continue
        fitting.append(value)
    if not fitting:
        raise NameError("the program defines no function that takes these arguments")
    return fitting[-1]


def _answer_name(name: str, namespace: dict[str, Any]) -> None:
    """Tell a test's sandbox what a name of the program stands for."""
    if name not in namespace or type(namespace[name]) is types.ModuleType:
        send({"name": "missing"})
    elif callable(namespace[name]):
        send({"name": "callable"})
    else:
        send({"name": "value", "value": values.encode(namespace[name])})


def _report_outputs(names: list[str], namespace: dict[str, Any]) -> None:
    for name in names:
        if name in namespace:
            send({"output": name, "value": values.encode(namespace[name])})


def _report_description(recorder: describe.Recorder) -> None:
    send({"description": recorder.report()})


# --- a test module -----------------------------------------------------------------------------


class ProgramError(Exception):
    """Raised inside a test where the program raised an exception of its own class."""


def _test(job: dict[str, Any], namespace: dict[str, Any]) -> None:
    """Run test code against proxies of the program's names."""
    code = job["code"]
    try:
        tree = ast.parse(code)
        compiled = compile(tree, "<test>", "exec", dont_inherit=True)
        for name in sorted(_wanted(code, job["entry"])):
            _bind(name, namespace)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        send({"bad_test": _describe_error(error)})
        return
    send({"loaded": True})
    try:
        exec(compiled, namespace)
        if _defines(tree, "check") and not _calls(tree, "check"):
            # HumanEval's tests define `check(candidate)` and leave the call to the harness.
            _bind(job["entry"], namespace, "candidate")
            namespace["check"](namespace["candidate"])
    except BaseException as error:
        _raised(error)
        return
    _flush()
    send({"done": True})


def _wanted(code: str, entry: str | None) -> set[str]:
    """Names that a test takes from the program: used as globals, not defined by the test.

    The entry point is always one of them, also where it is called like a built-in (`sum`).
    """
    table = symtable.symtable(code, "<test>", "exec")
    own = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    used: set[str] = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    scopes = list(table.get_children())
    while scopes:
        scope = scopes.pop()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
        scopes += scope.get_children()
    used -= set(dir(builtins))
    return (used | ({entry} if entry else set())) - own


def _defines(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _calls(tree: ast.Module, name: str) -> bool:
    """Whether the module itself calls `name` at its top level."""
    apart = (ast.FunctionDef, ast.ClassDef)
    statements = [node for node in tree.body if not isinstance(node, apart)]
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for statement in statements
        for node in ast.walk(statement)
    )


def _bind(name: str, namespace: dict[str, Any], alias: str | None = None) -> None:
    """Put a proxy, or a copy of a plain value, where the test expects the program's name."""
    send({"get": name})
    answer = receive()
    if answer["name"] == "callable":
        namespace[alias or name] = _proxy(name)
    elif answer["name"] == "value":
        namespace[alias or name] = values.revive(values.decode(answer["value"]))
    elif _ALIASES.get(name, name) in (*sys.stdlib_module_names, *_ALIASES.values()):
        # Tests written for the program's own namespace lean on its imports. The module is this
        # process's own, whatever the program did to its copy.
        namespace[alias or name] = importlib.import_module(_ALIASES.get(name, name))


_ALIASES = {"np": "numpy", "pd": "pandas"}


def _proxy(name: str) -> Any:
    def candidate(*args: Any, **kwargs: Any) -> Any:
        try:
            forms = [values.encode(arg, strict=True) for arg in args]
            named = {key: values.encode(arg, strict=True) for key, arg in kwargs.items()}
        except ValueError as error:
            send({"unsupported": str(error)})
            _exit(0)
        send({"call": [name, forms, named]})
        answer = receive()
        if "raised" in answer:
            kind, text = answer["raised"]
            known = getattr(builtins, kind, None)
            if isinstance(known, type) and issubclass(known, Exception):
                try:
                    raised = known(text)
                except TypeError:
                    raised = ProgramError(f"{kind}: {text}")
                raise raised
            raise ProgramError(f"{kind}: {text}")
        return values.revive(values.decode(answer["value"]))

    candidate.__name__ = name
    return candidate
