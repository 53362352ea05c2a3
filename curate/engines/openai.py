"""Any OpenAI-compatible server (DeepSeek, OpenAI, vLLM, SGLang, …) through the official client.

    engine:
      name: openai
      args: {base_url: https://api.deepseek.com, model: deepseek-reasoner,
             api_key_env: DEEPSEEK_API_KEY, concurrency: 64, rpm: 500,
             price_in: 0.55, price_out: 2.19, budget: 20}

Requests run on an event loop in a separate thread; the caller's thread reads the source and yields
completions. A failure of one request (429, 5xx, a timeout, a dropped connection) is retried with
backoff and then becomes a completion with an error. A failure that every request would share (a
wrong key, an unknown model, an empty account) ends the job. Keys come from the environment only,
and are removed from every message. With `batch: true` requests go into batches instead
(openai_batch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from curate.config import Config, validate
from curate.engines.base import EngineConfig, check_sampling, failed
from curate.engines.limits import (
    capped_client,
    check_server_url,
    count,
    logprobs,
    token_ids,
    wait_limit,
)
from curate.engines.openai_batch import BatchRun
from curate.engines.prices import price_of
from curate.errors import CurateError, UsageError
from curate.extras import need
from curate.progress import counted, say
from curate.records import Completion, Request, Sampling

BATCH_BODIES = 8  # size limit of a batch's results, in answers of `max_body` bytes
PAUSE = 0.05  # seconds between reads of a source that has nothing yet
FIRST_WAIT = 0.5  # seconds before the first retry, doubled for each further one
# To estimate a prompt's tokens for limits and budgets, on the safe side: English has about four.
CHARS_PER_TOKEN = 3.0
UNKNOWN_LENGTH = 1 << 20
# Servers that take keys missing in a request from the model's generation config, by the owner of
# their models, and the keys that prevent it. Others may refuse unknown keys.
FILLING = {"vllm", "sglang"}
UNTRUNCATED = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
OWNER_PATIENCE = 10.0  # seconds to wait for the list of models
FATAL = {
    401: "the key was refused",
    402: "the account is empty",
    403: "access was denied",
    404: "no such model or path",
}


class BudgetReached(CurateError):
    """The budget is spent. Everything in flight was completed first."""


class OpenAIArgs(Config):
    """`EngineConfig.args` of this engine.

    Prices are per million tokens, in the currency of `budget`.
    """

    base_url: str | None = Field(
        default=None, description="None: OPENAI_BASE_URL, else OpenAI's own"
    )
    model: str | None = Field(
        default=None, description="the server's name for it; None: the model of the job"
    )
    revision: str | None = Field(
        default=None, description="a date or version, if the name alone does not determine it"
    )
    api: Literal["chat", "completions"] = Field(
        default="chat", description="completions: the prompt as it is"
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY", description="environment variable that holds the key"
    )
    concurrency: int = Field(default=32, ge=1, description="maximum number of requests in flight")
    rpm: float | None = Field(default=None, gt=0, description="requests per minute")
    tpm: float | None = Field(
        default=None, gt=0, description="tokens per minute, prompt and completion"
    )
    max_body: int = Field(default=64_000_000, ge=1000, description="bytes of one answer, decoded")
    max_retry_after: float = Field(
        default=600.0, ge=0, description="longest wait that a server can impose, in seconds"
    )
    retries: int = Field(default=6, ge=0, description="further tries of a failed request")
    timeout: float = Field(default=600.0, gt=0, description="seconds for one try")
    max_wait: float = Field(
        default=60.0, gt=0, description="longest backoff in seconds; Retry-After may be longer"
    )
    price_in: float | None = Field(
        default=None, ge=0, description="None: the list price, if it is known (prices.py)"
    )
    price_cached: float | None = Field(
        default=None, ge=0, description="of prompt tokens from the server's cache"
    )
    price_out: float | None = Field(
        default=None, ge=0, description="None: the list price, if it is known (prices.py)"
    )
    budget: float | None = Field(
        default=None, gt=0, description="cost at which the job stops; null: no limit"
    )
    spent: float = Field(
        default=0.0, ge=0, description="part of the budget spent before this engine was opened"
    )
    reasoning: tuple[str, str] = Field(
        default=("<think>", "</think>"), description="put around separate reasoning"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="the server's name for the length limit"
    )
    send_seed: bool = Field(default=True, description="send the seed of each request")
    send_logprobs: bool = Field(
        default=False, description="request the log-probs of sampled tokens"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="sent unchanged with each request"
    )
    batch: bool = Field(
        default=False, description="send requests as batches, which take up to a day"
    )
    batches: int = Field(default=8, ge=1, description="maximum number of batches in progress")
    batch_size: int = Field(
        default=10_000, ge=1, le=50_000, description="requests per batch; at most one chunk"
    )
    poll: float = Field(default=30.0, gt=0, description="seconds between polls of open batches")
    journal: str | None = Field(
        default=None, description="folder in which a job notes its batches; set by the job"
    )

    @model_validator(mode="after")
    def _budget_has_prices(self) -> OpenAIArgs:
        listed = self.model and price_of(server_url(self), self.model)
        if self.budget is not None and not (self.price_in or self.price_out or listed):
            raise ValueError(
                "budget: without price_in and price_out no cost is known, so the budget would "
                "never stop the job: give the prices per million tokens (only a few models' list "
                "prices are known, by engine.args.model)"
            )
        return self


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens that a job counts with. `source` says where they are from."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0
    source: str = ""


def prices(args: OpenAIArgs, model: str) -> Prices:
    """The prices of the config, else the list prices of the model, else none."""
    if args.price_in is None and args.price_out is None:
        if (listed := price_of(server_url(args), model)) is None:
            return Prices()
        factor = listed.batch if args.batch else 1.0
        prompt, completion = factor * listed.prompt, factor * listed.completion
        source = (
            f"prices of {model}: {prompt:g} in, {completion:g} out per million tokens, list prices "
            f"of {listed.date} in US dollars; set price_in and price_out if they have changed"
        )
        return Prices(prompt, prompt, completion, source)
    prompt, completion = args.price_in or 0.0, args.price_out or 0.0
    cached = prompt if args.price_cached is None else args.price_cached
    return Prices(prompt, cached, completion)


@dataclass
class Usage:
    """Tokens, requests and money used so far."""

    requests: int = 0
    retries: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Bucket:
    """Token bucket of `per_minute` units per minute. A limit of None never waits.

    It fills evenly and holds the units of one second only: a burst at the start would exceed the
    server's window.
    """

    def __init__(self, per_minute: float | None) -> None:
        self.rate = (per_minute or 0) / 60
        self.size = max(self.rate, 1.0)
        self.level = self.size
        self.at = time.monotonic()

    async def take(self, units: float) -> None:
        """Wait for room. A request larger than the bucket passes and leaves a debt, for which later
        requests wait.
        """
        while self.rate and (wait := self.wait(units)) > 0:
            await asyncio.sleep(wait)
        self.level -= units

    def wait(self, units: float) -> float:
        now = time.monotonic()
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        return max(0.0, (min(units, self.size) - self.level) / self.rate)

    def settle(self, units: float) -> None:
        """Return (or take, if negative) the difference between an estimate and the real number."""
        if self.rate:
            self.level += units


@dataclass
class Job:
    request: Request
    reserved: float  # money it can cost at most
    guess: float = 0.0  # tokens taken from the bucket
    tries: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)


class OpenAIEngine:
    name = "openai"
    tokenizer: Any = None

    def __init__(self, config: EngineConfig, model_dir: str | Path = "") -> None:
        if "api_key" in config.args:
            raise UsageError(
                "engine.args.api_key: keys come from the environment only. Name the variable: "
                "api_key_env"
            )
        self.args = validate(OpenAIArgs, config.args, "engine.args")
        self.model = self.args.model or str(model_dir)
        if not self.model:
            raise UsageError("the engine 'openai' needs a model: set model, or engine.args.model")
        self.base_url = server_url(self.args)
        self._key = self._find_key()
        self.model_path = Path(self.model)
        self.model_hash = identity(self.args, self.model)
        self.max_model_len = config.max_model_len or UNKNOWN_LENGTH
        self.end_token_ids: set[int] = set()
        self.usage = Usage()
        self.prices = prices(self.args, self.model)
        if self.prices.source:
            say(f"  {self.prices.source}")
        self._requests, self._tokens = Bucket(self.args.rpm), Bucket(self.args.tpm)
        self._hold_until = 0.0  # until then all requests wait, at the server's request
        self._average = 0.0  # completion tokens per request so far
        self._loop: asyncio.AbstractEventLoop | None = None
        self.client: Any = None
        self._defaults: asyncio.Future[dict[str, Any]] | None = None

    def _find_key(self) -> str:
        key = os.environ.get(self.args.api_key_env, "").strip()
        local = any(
            f"//{host}" in self.base_url for host in ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")
        )
        if not key and not local:
            raise UsageError(
                f"no key for {self.base_url}: set the environment variable {self.args.api_key_env}"
            )
        return key or "none"

    # --- the contract

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions in finishing order.

        Raises BudgetReached once everything in flight has been yielded, and CurateError for a
        failure that every request would share.
        """
        if self.args.batch:
            yield from BatchRun(self, requests).completions()
            return
        loop, source = self.start(), iter(requests)
        arrived: queue.SimpleQueue[tuple[Job, Completion | BaseException]] = queue.SimpleQueue()
        running: dict[int, tuple[Job, Any]] = {}
        held: Request | None = None  # read already, waiting for the budget
        ended: BaseException | None = None
        exhausted = False
        try:
            while True:
                while ended is None and not exhausted and len(running) < self.args.concurrency:
                    try:
                        request = held or next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:
                        break
                    held = None
                    if reason := check_sampling(request) or self.fault(request):
                        yield failed(request, reason)
                        continue
                    job = Job(request, self.worst_cost(request))
                    reserved = sum(other.reserved for other, _ in running.values())
                    if not self.fits(job.reserved + reserved):
                        held = request
                        if not running:
                            ended = self.budget_reached()
                        break
                    running[id(job)] = (
                        job,
                        asyncio.run_coroutine_threadsafe(self._ask(job, arrived), loop),
                    )
                if not running and (ended is not None or exhausted):
                    break
                try:
                    job, result = arrived.get(
                        timeout=None if running and (exhausted or ended or held) else PAUSE
                    )
                except queue.Empty:
                    continue
                del running[id(job)]
                if isinstance(result, Completion):
                    yield result
                else:
                    ended = ended or result
            if ended is not None:
                raise ended
        finally:
            for _, future in running.values():
                future.cancel()

    def render_chat(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as JSON. `generate` sends them as messages: the server has the template."""
        return json.dumps(messages, ensure_ascii=False)

    def update_weights(self, directory: str | Path) -> str:
        raise CurateError(
            "a server's weights cannot be changed from here: use engine.name=vllm or transformers"
        )

    def sleep(self) -> None:
        return None

    def wake(self) -> None:
        return None

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        with contextlib.suppress(Exception):  # the connections go with the process anyway
            asyncio.run_coroutine_threadsafe(self.client.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)

    # --- money

    def worst_cost(self, request: Request) -> float:
        """Maximum cost of a request."""
        tokens, most = _guess_tokens(request), request.sampling.max_tokens
        return (tokens * self.prices.prompt + most * self.prices.completion) / 1e6

    def fits(self, cost: float) -> bool:
        """Whether the budget covers this much more."""
        return (
            self.args.budget is None or self.args.spent + self.usage.cost + cost <= self.args.budget
        )

    def budget_reached(self) -> BudgetReached:
        """Error that ends a job whose budget is spent."""
        spent = self.args.spent + self.usage.cost
        return BudgetReached(
            f"the budget of {self.args.budget:g} does not cover another request ({spent:.4f} is "
            "spent). Finished traces are kept; raise engine.args.budget and run the same command "
            "to continue"
        )

    def fault(self, request: Request) -> str | None:
        """Reason why a request cannot be sent; None if it can."""
        if not request.prompt.strip() and not request.prompt_token_ids:
            return "the prompt is empty"
        guess = len(request.prompt_token_ids or ())
        if guess >= self.max_model_len:
            return f"the prompt has {guess} tokens; the model takes {self.max_model_len} in all"
        return None

    # --- the event loop's side

    def start(self) -> asyncio.AbstractEventLoop:
        """The event loop in its thread, with the client; started at first use."""
        if self._loop is None:
            need("the engine 'openai'", "openai", "openai")
            from openai import AsyncOpenAI

            # The results of a batch come as one body.
            most = BATCH_BODIES * self.args.max_body if self.args.batch else self.args.max_body
            self.client = AsyncOpenAI(
                api_key=self._key,
                base_url=self.base_url,
                max_retries=0,
                http_client=capped_client(most, self.args.timeout),
            )
            self._loop, self._defaults = asyncio.new_event_loop(), None
            threading.Thread(
                target=self._loop.run_forever, name="curate-openai", daemon=True
            ).start()
        return self._loop

    async def _ask(self, job: Job, arrived: queue.SimpleQueue[Any]) -> None:
        try:
            result: Completion | BaseException = await self._with_retries(job)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            result = error
        arrived.put((job, result))

    async def _with_retries(self, job: Job) -> Completion:
        import openai

        while True:
            await self._turn(job)
            start = time.monotonic()
            try:
                async with asyncio.timeout(self.args.timeout):  # httpx limits each read only
                    answer = await self._call(job.request)
                return self._completion(job, answer, time.monotonic() - start)
            except (
                openai.APIConnectionError,
                openai.APIStatusError,
                openai.APIResponseValidationError,
            ) as error:
                wait = self._retry_after_error(job, error)
            except TimeoutError:
                wait = self._again(job, f"no answer in {self.args.timeout:g} s", None)
            except (
                ValueError,
                AttributeError,
                TypeError,
                LookupError,
                OverflowError,
                RecursionError,
            ) as error:
                # The server does not keep to the protocol.
                reason = f"an answer that cannot be read ({type(error).__name__}: {_short(error)})"
                wait = self._again(job, reason, None)
            self._tokens.settle(job.guess)
            if wait is None:
                self.usage.errors += 1
                return failed(job.request, self.clean("; ".join(job.reasons[-1:]) or "failed"))
            self.usage.retries += 1
            await asyncio.sleep(wait)

    async def _turn(self, job: Job) -> None:
        """Wait until the limits allow one more request."""
        while (wait := self._hold_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        job.guess = _guess_tokens(job.request) + (self._average or job.request.sampling.max_tokens)
        await self._requests.take(1)
        await self._tokens.take(job.guess)

    async def _sampling_defaults(self) -> dict[str, Any]:
        """Keys that keep the server from truncating samples unless a request sets it."""
        if self._defaults is None:
            self._defaults = asyncio.ensure_future(self._ask_owner())
        # Shielded: a cancelled request must not cancel it for the others.
        return dict(await asyncio.shield(self._defaults))

    async def _ask_owner(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):  # many servers do not list models
            async with asyncio.timeout(min(OWNER_PATIENCE, self.args.timeout)):
                models = await self.client.models.list()
            if any(model.owned_by in FILLING for model in models.data):
                return UNTRUNCATED
        return {}

    def body(self, request: Request) -> dict[str, Any]:
        """JSON body of a request."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.args.max_tokens_field: sampling.max_tokens,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.args.send_seed:
            body["seed"] = request.seed
        want = self.args.send_logprobs and sampling.logprobs
        if self.args.api == "completions":
            ids = request.prompt_token_ids
            body["prompt"] = ids if ids is not None else request.prompt
            body |= {"logprobs": 1} if want else {}
        else:
            body["messages"] = parse_messages(request.prompt)
            body |= {"logprobs": True} if want else {}
        # OpenAI has no top_k; vLLM and SGLang do
        top_k = {"top_k": sampling.top_k} if sampling.top_k else {}
        return {**body, **top_k, **self.args.extra_body}

    async def _call(self, request: Request) -> Any:
        body = {**await self._sampling_defaults(), **self.body(request)}
        chat = self.args.api == "chat"
        own = ["model", "messages" if chat else "prompt"]
        options = {name: body.pop(name) for name in own}
        api = self.client.chat.completions if chat else self.client.completions
        return await api.create(**options, extra_body=body)

    def read_body(self, request: Request, body: Any) -> Completion:
        """The completion in the JSON of an answer. Raises like reading the answer of a call."""
        from openai.types import Completion as Text
        from openai.types.chat import ChatCompletion

        if not isinstance(body, dict):
            raise ValueError("the answer is not an object")
        answer = (ChatCompletion if self.args.api == "chat" else Text).construct(**body)
        return self._completion(Job(request, 0.0), answer, 0.0)

    def wait_after(self, error: Any, tries: int) -> float | None:
        """Seconds to wait after a server error; None after the last try.

        Raises CurateError for a failure that every request would share.
        """
        job = Job(Request("", "", 0, Sampling()), 0.0, tries=tries - 1)
        if isinstance(error, TimeoutError):
            return self._again(job, "no answer in time", None)
        return self._retry_after_error(job, error)

    def _retry_after_error(self, job: Job, error: Any) -> float | None:
        """Seconds to wait before the next try; None: abandon this request.

        Raises CurateError if every request would fail.
        """
        status = getattr(error, "status_code", None)
        message = self.clean(_message(error))
        if status in FATAL or "insufficient_quota" in message:
            why = FATAL.get(status or 0, "the quota is used up")
            raise CurateError(
                f"{self.base_url} answered {status} for model '{self.model}': {why} ({message})"
            )
        if status is None or status in (408, 409, 425, 429) or status >= 500:
            least = wait_limit(retry_after(error), self.args.max_retry_after)
            if status == 429 and least is not None:
                self._hold_until = max(self._hold_until, time.monotonic() + least)
            what = str(status) if status else f"no answer from {self.base_url}"
            return self._again(job, f"{what}: {message}", least)
        job.reasons.append(f"the server refused it: {status}: {message}")
        return None

    def _again(self, job: Job, reason: str, least: float | None) -> float | None:
        """Seconds to wait before another try, at least `least`; None after the last try."""
        job.tries += 1
        job.reasons.append(f"{reason} (after {counted(job.tries, 'try', 'tries')})")
        if job.tries > self.args.retries:
            return None
        backoff = min(self.args.max_wait, FIRST_WAIT * 2 ** (job.tries - 1)) * random.uniform(
            0.5, 1.0
        )
        return max(backoff, least or 0.0)

    def clean(self, text: str) -> str:
        """Remove the key from a text."""
        return text.replace(self._key, "***") if self._key != "none" else text

    def _completion(self, job: Job, answer: Any, seconds: float) -> Completion:
        request, choice, used = job.request, answer.choices[0], answer.usage
        text, refusal = text_of(choice, self.args.reasoning)
        prompt_tokens = count(getattr(used, "prompt_tokens", None), "prompt tokens")
        completion_tokens = count(getattr(used, "completion_tokens", None), "completion tokens")
        details = getattr(used, "prompt_tokens_details", None)
        cached = min(count(getattr(details, "cached_tokens", None), "cached tokens"), prompt_tokens)
        prompt_ids = token_ids(
            getattr(choice, "prompt_token_ids", None) or getattr(answer, "prompt_token_ids", None)
        )
        ids = token_ids(getattr(choice, "token_ids", None))
        probs = logprobs(logprobs_of(choice), ids)
        text = str(text)
        cost = self._cost(prompt_tokens, cached, completion_tokens)
        self._count(job, prompt_tokens, completion_tokens, cost)
        error = refusal
        if choice.finish_reason not in ("stop", "length"):
            error = error or f"the server ended it: {_short(choice.finish_reason)}"
        elif not text and choice.finish_reason == "stop":
            error = error or "the answer is empty"
        extra = {
            "cost": cost,
            "seconds": round(seconds, 3),
            "tries": job.tries + 1,
            "cached_prompt_tokens": cached,
        }
        if error:
            self.usage.errors += 1
        return Completion(
            request.request_id,
            text,
            "error" if error else choice.finish_reason,
            prompt_token_ids=prompt_ids,
            token_ids=ids,
            logprobs=probs,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            error=error,
            extra=extra | ({"server_model": answer.model} if answer.model != self.model else {}),
        )

    def _cost(self, prompt: int, cached: int, completion: int) -> float:
        rate = self.prices
        money = (prompt - cached) * rate.prompt + cached * rate.cached
        return (money + completion * rate.completion) / 1e6

    def _count(self, job: Job, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        usage = self.usage
        usage.requests += 1
        usage.prompt_tokens += prompt_tokens
        usage.completion_tokens += completion_tokens
        usage.cost += cost
        self._average = usage.completion_tokens / usage.requests
        self._tokens.settle(job.guess - prompt_tokens - completion_tokens)


def server_url(args: OpenAIArgs) -> str:
    url = args.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    return check_server_url(url)


def identity(args: OpenAIArgs, model: str) -> str:
    """Stand-in for the weights hash of a remote model: server, model name and revision."""
    name = f"{server_url(args)}|{model}|{args.revision or ''}"
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def parse_messages(prompt: str) -> list[dict[str, str]]:
    """The messages that `render_chat` wrote; any other text is one message of the user."""
    if prompt.startswith('[{"'):
        try:
            messages = json.loads(prompt)
        except ValueError:
            messages = None
        if isinstance(messages, list) and all(
            isinstance(m, dict) and "role" in m for m in messages
        ):
            return messages
    return [{"role": "user", "content": prompt}]


def text_of(choice: Any, delimiters: tuple[str, str]) -> tuple[str, str | None]:
    """The text of an answer, with separate reasoning put in front, and why it was refused (None if
    it was not).
    """
    message = getattr(choice, "message", None)
    stop = getattr(choice, "stop_reason", None)
    # vLLM reports the stop string that it cut off; other servers keep it in the text.
    stop = stop if isinstance(stop, str) else ""
    if message is None:
        return (choice.text or "") + stop, None
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    content = (message.content or "") + stop
    refusal = getattr(message, "refusal", None)
    if reasoning:
        # Reasoning that was truncated is not closed.
        closed = delimiters[1] if content or choice.finish_reason == "stop" else ""
        content = f"{delimiters[0]}{reasoning}{closed}{content}"
    return content, f"the model refused: {_short(refusal)}" if refusal else None


def logprobs_of(choice: Any) -> list[float] | None:
    """Log-probs of the sampled tokens, from the answer of either API."""
    reported = getattr(choice, "logprobs", None)
    if reported is None:
        return None
    if getattr(reported, "content", None):
        return [entry.logprob for entry in reported.content]
    return list(reported.token_logprobs) if getattr(reported, "token_logprobs", None) else None


def retry_after(error: Any) -> float | None:
    """Seconds to wait by the server's headers: a number or a date in `Retry-After`, or
    `retry-after-ms`.
    """
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        if headers.get("retry-after-ms"):
            return float(headers["retry-after-ms"]) / 1000
        value = headers.get("retry-after")
        if not value:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _guess_tokens(request: Request) -> float:
    if request.prompt_token_ids is not None:
        return float(len(request.prompt_token_ids))
    return len(request.prompt.encode()) / CHARS_PER_TOKEN


def _message(error: Any) -> str:
    body = getattr(error, "body", None)
    inner = body.get("message") or body.get("detail") if isinstance(body, dict) else None
    return _short(inner or error)


def _short(text: object) -> str:
    """Shorten a server's message to one line; it may be megabytes long."""
    return str(text).strip()[:300].replace("\n", " ")
