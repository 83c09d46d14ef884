"""A tiny model, a server of few words, and a judge without a sandbox."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from improver.types import TrainJob
from ops.records import AdapterState, Alias, SwapReceipt, new_id, now
from ops.registry import Registry
from ops.store import Store
from sandbox.errors import SandboxError
from sandbox.spec import Spec
from sandbox.types import ExampleResult, Tier, Verdict, Verification
from sandbox.values import decode

BASE = "tiny-base"
MOST_STEPS = 20_000
Json = dict[str, Any]
Script = Callable[[Json, int], str]


class ExecJudge:
    """Judges programs that the tests themselves wrote, in this process. No isolation at all."""

    def __init__(self) -> None:
        self.checks = 0
        self.broken = False

    async def check(self, code: str, spec: Spec) -> Verification:
        self.checks += 1
        if self.broken:
            raise SandboxError("the sandbox is broken")
        results = [self._run(code, spec, i) for i in range(len(spec.examples))]
        hidden = [r for r in results if r.hidden]
        shown = [r for r in results if not r.hidden]
        failed = next((r for r in results if not r.passed), None)
        return Verification(
            verified=bool(results) and failed is None,
            verdict=failed.verdict if failed else Verdict.OK,
            passed=sum(r.passed for r in results),
            total=len(results),
            passed_visible=sum(r.passed for r in shown),
            total_visible=len(shown),
            passed_hidden=sum(r.passed for r in hidden),
            total_hidden=len(hidden),
            examples=tuple(results),
            duration_s=0.001,
            tier=Tier.NONE,
        )

    @staticmethod
    def _run(code: str, spec: Spec, index: int) -> ExampleResult:
        example = spec.examples[index]
        verdict, message = Verdict.OK, None
        steps = 0

        def count(frame: object, event: str, argument: object) -> object:
            nonlocal steps
            steps += 1
            if steps > MOST_STEPS:
                raise TimeoutError("it does not end")
            return count

        try:
            names: Json = {}
            sys.settrace(count)
            try:
                exec(code, names)  # the test's own text
                function = names[spec.entry_point or "solution"]
                kwargs = {k: decode(v) for k, v in example.kwargs.items()}
                value = function(*[decode(a) for a in example.args], **kwargs)
            finally:
                sys.settrace(None)
            if value != decode(example.output):
                verdict, message = Verdict.WRONG, f"it returned {value!r}"
        except Exception as error:
            verdict, message = Verdict.ERROR, f"{type(error).__name__}: {error}"
        return ExampleResult(
            index=index,
            kind="example",
            hidden=bool(example.hidden),
            verdict=verdict,
            duration_ms=0.1,
            message=message,
        )


class StubServer:
    """A Journeyman server as far as the improver can see: models, completions, swaps."""

    def __init__(self) -> None:
        self.script: Script = lambda body, index: "```python\ndef f():\n    return 1\n```"
        self.bodies: list[Json] = []
        self.unavailable = 0
        """How many requests are answered 503 before the next one is served."""
        self.refuse: str | None = None
        """Why adapters are refused; None: they are accepted."""
        self.status: int | None = None
        self.in_flight = self.most_in_flight = 0
        self.delay_s = 0.0
        self._champion = 0
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._registry: Registry | None = None
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def follow(self, store: Store, registry: Registry) -> None:
        """Answer for the adapters of a registry, as the real server does."""
        self._store, self._registry = store, registry

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def models(self) -> Json:
        entries: list[Json] = []
        champion = 0
        if self._store is not None and self._registry is not None:
            with self._lock:
                for alias, version in self._store.aliases().items():
                    self._bring(version)
                    if alias is Alias.CHAMPION:
                        champion = version
                self._flip(champion)
                aliases = self._store.aliases()
            entries += [{"id": f"code@v{v}", "parent": BASE} for v in sorted({*aliases.values()})]
        parent = BASE if champion else None
        code = {"id": "code", "parent": parent, "adapter": {"name": "code", "version": champion}}
        return {"object": "list", "data": [code, {"id": BASE, "parent": None}, *entries]}

    def _flip(self, version: int) -> None:
        if version != self._champion:
            self._champion = version
            if version:
                self._receipt(version, "code is now it")

    def _bring(self, version: int) -> None:
        assert self._store is not None
        assert self._registry is not None
        if self._store.receipts(version=version):
            return
        if self._registry.get(version).state is AdapterState.REJECTED:
            return
        self._receipt(version, self.refuse or "proved")
        if self.refuse is not None:
            self._registry.refuse(version, actor="stub", reason=self.refuse, evidence={})

    def _receipt(self, version: int, reason: str) -> None:
        assert self._store is not None
        self._store.add_receipt(
            SwapReceipt(
                id=new_id(),
                at=now(),
                server="stub",
                version=version,
                from_version=0,
                accepted=self.refuse is None,
                reason=reason,
                phases_s={"load": 0.01},
                probe={"engine_shift": 0.1},
            )
        )

    def chat(self, body: Json) -> Json:
        n = body.get("n", 1)
        return {
            "id": "chatcmpl-1",
            "model": body["model"],
            "adapter": {"name": "code", "version": 0},
            "choices": [
                {
                    "index": i,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": self.script(body, i)},
                }
                for i in range(n)
            ],
            "usage": {"completion_tokens": 10 * n},
        }

    def _handler(stub: StubServer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, stub.models())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with stub._lock:
                    stub.bodies.append(body)
                    stub.in_flight += 1
                    stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
                    unavailable = stub.unavailable > 0
                    stub.unavailable -= unavailable
                time.sleep(stub.delay_s)
                with stub._lock:
                    stub.in_flight -= 1
                if unavailable:
                    self._send(503, {"error": {"message": "the engine is down"}})
                elif stub.status is not None:
                    self._send(stub.status, {"error": {"message": "the prompt is too long"}})
                else:
                    self._send(200, stub.chat(body))

            def _send(self, status: int, body: Json) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if status == 503:
                    self.send_header("retry-after", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[StubServer]:
    stub = StubServer()
    yield stub
    stub.close()


@pytest.fixture
def judge() -> ExecJudge:
    return ExecJudge()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a tokenizer of bytes, on disk."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.2,  # else the logits are so small that nothing can be learned
        eos_token_id=vocabulary["<|im_end|>"],
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def train_job(tiny_model: Path) -> TrainJob:
    """A training of the tiny model that shows an effect within a few steps."""
    return TrainJob(
        base_directory=str(tiny_model),
        base_name="tiny",
        base_sha256="00",
        max_lora_rank=16,
        rank=8,
        alpha=64,
        dropout=0.05,
        learning_rate=3e-2,
        epochs=3,
        batch_rows=4,
        max_tokens=256,
        seed=7,
        dtype="float32",
        checkpoint_s=0.0,
    )
