"""The recipe: what the user asks for, as one frozen, validated value.

YAML in, pydantic models out. Every field has a default and a one-line description; an unknown key is an
error that names the line and the closest known key. A recipe holds no live objects, knows no stage, and
imports nothing that is slow. Relative paths in it are taken from the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import pydantic
import yaml
from pydantic import Field

from edgekd.errors import BadInput, closest

SCHEMA_VERSION = 1
MIN_TOKENS, MAX_BUCKETS = 4, 8  # of an input length; lengths of one file, each of which is a graph of its own


class Section(pydantic.BaseModel):
    """Base of all recipe sections: frozen, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Endpoint(Section):
    """A teacher behind an OpenAI-compatible address: it answers prompts, and the student learns its answers."""

    base_url: str = Field(description="Address of the API, e.g. http://localhost:8000/v1.")
    model: str = Field(description="The model's name there.")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="NAME of the environment variable that holds the key; null: the server has none."
    )
    kind: Literal["chat", "completion"] = Field("chat", description="Messages, or text that the model goes on with.")
    system: str | None = Field(None, description="System message to the teacher; the student does not see it.")
    max_tokens: int = Field(256, ge=1, description="Longest answer; a longer one is cut, kept and marked.")
    limit_by: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls that limit."
    )
    temperature: float | None = Field(0.0, ge=0, description="Of sampling; null: the server's own.")
    samples: int = Field(1, ge=1, le=100, description="Answers to each prompt; several need a temperature above 0.")
    body: dict[str, Any] = Field(default_factory=dict, description="Further fields of a request, e.g. {top_p: 0.9}.")
    logprobs: int = Field(0, ge=0, description="Top log-probabilities of each token, where the server offers them.")
    rationale: bool = Field(False, description="Ask for the reasoning too, and teach it as a second task.")
    rationale_template: str = Field(
        "{prompt}\n\nExplain step by step, in a few sentences, how to find the answer.",
        description="What the teacher is asked for it; {prompt} is the prompt, or the last message of a conversation.",
    )
    rationale_prefix: str = Field(
        "Explain your reasoning: ", description="What comes before the student's prompt where it learns the reasoning."
    )
    max_failed: float = Field(
        0.01, ge=0, le=1, description="Share of requests that may stay without an answer; above it the step fails."
    )
    max_tokens_total: int | None = Field(None, ge=1, description="Budget for all answers: prompt and answer tokens.")
    max_cost: float | None = Field(None, gt=0, description="Budget for all answers, in the currency of the prices.")
    price_in: float | None = Field(None, ge=0, description="Price of a million prompt tokens.")
    price_out: float | None = Field(None, ge=0, description="Price of a million answer tokens.")
    concurrency: int = Field(4, ge=1, le=1024, description="Requests at the same time.")
    timeout_seconds: float = Field(120, gt=0, description="A request that takes longer is tried again.")
    retries: int = Field(5, ge=0, description="Tries after the first, with growing pauses, before a request fails.")
    cache: str | None = Field(None, description="Folder of answers that several runs share; default: the step's own.")
    offline: bool = Field(False, description="Answer from the cache alone, and fail where something is missing.")

    @pydantic.field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, url: str) -> str:
        # BadInput and not ValueError, here and below: pydantic would repeat the value, which may be a key.
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput("is no address", where="teacher.endpoint.base_url", todo="Write http://HOST:PORT/v1.")
        if parts.username or parts.password or parts.query:
            raise BadInput(
                "has a password or a query in it",
                where="teacher.endpoint.base_url",
                todo="Put the key into an environment variable and name that in api_key_env.",
            )
        return url.rstrip("/")

    @pydantic.field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
            raise BadInput(
                "is not the name of an environment variable (capitals, digits, _)",
                where="teacher.endpoint.api_key_env",
                todo="If it was the key itself: keys do not belong into recipes.",
            )
        return name

    @pydantic.field_validator("body")
    @classmethod
    def _has_no_field_of_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        ours = {"model", "messages", "prompt", "stream", "n", "echo", "max_tokens", "max_completion_tokens"}
        both = sorted(body.keys() & (ours | {"temperature", "logprobs", "top_logprobs"}))
        if both:
            raise ValueError(f"{both[0]} is set by another field of teacher.endpoint, or is not possible")
        return body

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Endpoint:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are the same answer: raise it, or set samples: 1")
        if self.system is not None and self.kind == "completion":
            raise ValueError("a completion has no system message: set kind: chat, or drop system")
        if "{prompt}" not in self.rationale_template:
            raise ValueError("rationale_template has no {prompt} in it")
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ValueError("max_cost needs price_in and price_out, per million tokens")
        return self


# What of an endpoint changes how the answers are come by, and not what they are: no part of a step's key.
ENDPOINT_MEANS = (
    "base_url", "api_key_env", "limit_by", "max_failed", "max_tokens_total", "max_cost", "price_in", "price_out",
    "concurrency", "timeout_seconds", "retries", "cache", "offline",
)  # fmt: skip


class Teacher(Section):
    """The large model whose knowledge is distilled."""

    model: str | None = Field(None, description="Local folder or hub id of the fine-tuned teacher.")
    revision: str | None = Field(None, description="Hub revision (commit, tag or branch) of the teacher.")
    tokenizer: str | None = Field(None, description="Folder or hub id of its tokenizer, if not the teacher's own.")
    trust_remote_code: bool = Field(False, description="Allow the teacher's repository to run its own code.")
    endpoint: Endpoint | None = Field(
        None, description="Who answers instead; `model` then is only what the student starts from."
    )


class Augment(Section):
    """Transfer text made from the training text; the teacher labels it. Recorded, never equal to a held-out text."""

    copies: int = Field(0, ge=0, le=100, description="Changed copies of each training text; 0 is none.")
    methods: dict[str, float] = Field(
        default_factory=lambda: {
            "delete": 0.15,
            "replace": 0.1,
            "borrow": 0.05,
            "neighbour": 0.2,
            "rotate": 0.05,
            "splice": 0.1,
            "cross": 0.35,
        },
        description="Shares of delete, replace, borrow, neighbour, rotate, splice, cross, masked-lm (by an MLM head).",
    )


class Earlier(Section):
    """Data that the student has learned before."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Its name in the report.")
    train: str = Field(description="Rows to replay, of the kind of data.train.")
    test: str = Field(description="Labelled rows that tell what is forgotten; the student must not know them.")


class Data(Section):
    """The labelled examples: local CSV, JSONL or Parquet files, or a hub data set."""

    train: str | None = Field(None, description="Training file (.csv, .jsonl, .parquet) or hub id ('name:split').")
    validation: str | None = Field(None, description="Validation file; made from train when absent.")
    test: str | None = Field(None, description="Test file; made from train when absent. Never used to choose.")
    unlabelled: str | None = Field(None, description="Text file (one a line) or table; the teacher labels it.")
    max_unlabelled: int = Field(10_000, ge=0, description="At most this many rows of it, chosen by seed.")
    augment: Augment = Field(default_factory=Augment, description="More transfer text, made from train.")
    replay: list[Earlier] = Field(default_factory=list, description="What the student must not forget.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names where they differ, e.g. {text: utterance, label: intent}.",
    )
    labels: list[str] | None = Field(None, description="Label names in the teacher's order; default: the teacher's.")
    validation_fraction: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out for validation.")
    test_fraction: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out for test, if there is none.")
    max_length: int = Field(64, ge=4, le=8192, description="Tokens per example; longer text is cut and reported.")
    limit: int | None = Field(None, ge=1, description="Use only the first rows of each split (for trials).")


class Member(Section):
    """A further teacher. Its labels are matched by name, its tokenizer is its own; it gives logits only."""

    model: str = Field(description="Local folder or hub id.")
    revision: str | None = Field(None, description="Hub revision.")
    tokenizer: str | None = Field(None, description="Its tokenizer, if not in its folder.")
    weight: float = Field(1.0, gt=0, description="Its share beside the first teacher's 1.0.")


class Teach(Section):
    """Running the teacher once over the data."""

    batch_size: int = Field(64, ge=1, description="Examples per forward pass of the teacher.")
    shard_samples: int = Field(2048, ge=1, description="Examples per file of the cache; a kill loses at most one.")
    max_cache_gb: float = Field(10.0, gt=0, description="A cache that would be larger is refused (10^9 bytes).")
    online: bool = Field(False, description="Keep the teacher in memory and ask it in every step, instead of a cache.")
    tokens: str = Field(
        "top:64",
        pattern=r"^(top|sampled):[1-9][0-9]{0,3}$",
        description="What is kept of a language model's distributions: the likeliest tokens, or draws (at most 63).",
    )
    answers: str | None = Field(
        None,
        pattern=r"^(greedy|beam:[1-9][0-9]?)$",
        description="text2text: learn what the teacher itself writes from the training sources, greedily or by beams.",
    )
    members: list[Member] = Field(default_factory=list, description="Further teachers.")
    combine: Literal["weighted", "confidence"] = Field(
        "weighted", description="How several teachers become one: by weight, or by weight times confidence per row."
    )


class Student(Section):
    """The shape of the small model; what is absent is taken from the teacher."""

    model: str | None = Field(None, description="Folder or hub id to start from (with its tokenizer), not the teacher.")
    layers: int | None = Field(None, ge=1, description="Transformer layers; default: half of the teacher's.")
    decoder_layers: int | None = Field(
        None, ge=1, description="Of the decoder, where there is an encoder too; default: as `layers`."
    )
    hidden_size: int | None = Field(None, ge=1, description="Width; default: the teacher's.")
    heads: int | None = Field(None, ge=1, description="Attention heads; default: the teacher's.")
    intermediate_size: int | None = Field(None, ge=1, description="Feed-forward width; default: the teacher's.")
    embedding_size: int | None = Field(None, ge=1, description="Rank of the word table; a projection widens it.")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout in training, of states and attention alike; default: the teacher's."
    )
    vocabulary: float | None = Field(
        None, gt=0, le=1, description="Keep the tokens that make up this share of the text; default: all there are."
    )
    vocabulary_size: int | None = Field(
        None, ge=1, description="Fill it up to this many tokens with the commonest others of the augmented text."
    )
    take: Literal["uniform", "first", "last"] | list[int] = Field(
        "uniform", description="Which teacher layers to start from; a list counts them from 0."
    )
    prune: Literal["none", "importance"] = Field(
        "none", description="A narrower width starts from principal components and fresh layers, or from what matters."
    )

    @pydantic.model_validator(mode="after")
    def _has_what_it_fills(self) -> Student:
        if self.vocabulary_size is not None and self.vocabulary is None:
            raise ValueError("vocabulary_size fills a trimmed vocabulary: set vocabulary too (1.0 keeps all your text)")
        return self


class Term(Section):
    """One piece of knowledge in the loss."""

    loss: str = Field(description="A loss that `edgekd targets` lists.")
    weight: float = Field(1.0, ge=0, description="Factor of the term.")
    layers: Literal["last", "uniform"] | list[tuple[int, int]] = Field(
        "last", description="Pairs [student, teacher] of layers from 1; 0 is the embeddings."
    )
    pool: Literal["cls", "mean", "none", "output"] = Field(
        "cls", description="Which hidden state: first token, mean, or every; output: what the task's head says."
    )
    heads: int = Field(12, ge=1, description="Relation heads of minilm.")
    of: tuple[Literal["query", "key", "value"], ...] = Field(
        ("query", "key", "value"), description="Which relations of minilm."
    )


class Lora(Section):
    """Adapters of low rank beside the linear layers of a model that stays as it is (arXiv:2106.09685)."""

    rank: int = Field(8, ge=1, description="Rank of an adapter.")
    alpha: int = Field(16, ge=1, description="An adapter's output is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of an adapter's input in training.")
    modules: Literal["linear"] | list[str] = Field(
        "linear", description="Which layers: every linear one but the head, or by name, e.g. [q_proj, v_proj]."
    )


class Replay(Section):
    """Rows from before beside the new ones, for a student to say of them what it said at its start."""

    share: float = Field(0.3, ge=0, lt=1, description="Of each batch; 0 replays nothing and reports what is forgotten.")
    weight: float = Field(1.0, gt=0, description="Factor of their loss.")


class OnPolicy(Section):
    """A second phase: the student writes, and the teacher scores every token of it (GKD, arXiv:2306.13649)."""

    steps: int = Field(200, ge=1, description="Steps of this phase, each over distill.batch_size prompts.")
    share: float = Field(
        0.5, gt=0, le=1, description="Share of the batches that the student writes itself; the data's own are the rest."
    )
    divergence: Literal["forward-kl", "reverse-kl", "jensen-shannon", "skew-kl", "skew-reverse-kl"] = Field(
        "reverse-kl", description="What is compared, token by token, over the whole vocabulary."
    )
    max_new_tokens: int = Field(32, ge=1, description="Longest text that it writes; prompt and text fit max_length.")
    temperature: float = Field(1.0, gt=0, description="Of its writing; the divergence is taken at temperature 1.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of this phase.")
    evaluate_every: int = Field(50, ge=1, description="Steps between evaluations on validation.")
    samples: int = Field(64, ge=1, description="Held-out prompts that it continues in an evaluation.")
    choose: Literal["reverse-kl", "metric", "last"] = Field(
        "reverse-kl",
        description="Which checkpoint, the one that this phase started from among them: smallest reverse KL of what "
        "it writes on held-out prompts, best metric, or last.",
    )


class Distill(Section):
    """Training the student: alpha * hard + (1 - alpha) * sum of weight * term; KL terms carry T^2."""

    student: Student = Field(default_factory=Student, description="The student's shape and start.")
    epochs: float = Field(10, gt=0, description="Passes over the training and the transfer rows.")
    max_steps: int | None = Field(
        None, ge=0, description="Steps instead of epochs; 0 takes the student as it starts, and trains no baseline."
    )
    batch_size: int = Field(32, ge=1, description="Examples per step, over all processes.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["linear", "cosine"] = Field("linear", description="How the learning rate falls to 0.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps spent warming up.")
    alpha: float = Field(0.1, ge=0, le=1, description="Weight of the hard labels; 1 ignores the teacher.")
    alpha_end: float | None = Field(None, ge=0, le=1, description="Move alpha linearly to this; default: constant.")
    temperature: float = Field(4.0, gt=0, description="Softens both distributions before a KL.")
    temperature_end: float | None = Field(None, gt=0, description="Move T linearly to this; default: constant.")
    losses: list[Term] | None = Field(
        None, description="Knowledge terms; default: the task's own, forward-kl for most."
    )
    evaluate_every: float = Field(1.0, gt=0, description="Epochs between evaluations on validation.")
    patience: int = Field(4, ge=1, description="Stop after this many evaluations without improvement.")
    choose: Literal["metric", "distance", "last"] = Field(
        "metric",
        description="Which checkpoint: best metric or smallest distance to the teacher on validation, or last.",
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints; a kill loses at most these.")
    seed: int | None = Field(None, ge=0, description="Seed of the training alone; default: the recipe's seed.")
    baseline: bool = Field(True, description="Also train the same student without the teacher, equal budget.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Mixed precision of training.")
    packing: bool = Field(False, description="Put short texts of a language model into one row, kept apart.")
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    on_policy: OnPolicy | None = Field(
        None, description="Then train a language model on what it writes itself, with the teacher at hand."
    )
    lora: Lora | None = Field(None, description="Train adapters, not the model: needs student.model.")
    replay: Replay = Field(default_factory=Replay, description="How data.replay is kept in mind: needs student.model.")


class Mixed(Section):
    """Mixed precision: the layers that hurt most are kept in another way, as few as it takes."""

    upgrade: dict[str, str] = Field(
        default_factory=lambda: {"w8a8": "w8a8-dynamic", "w8a8-dynamic": "fp32", "w8": "fp32", "w4": "w8"},
        description="By scheme: how its sensitive layers are kept; a scheme that is not named is not mixed.",
    )
    max_drop: float = Field(
        0.005, ge=0, le=1, description="Validation answers that may differ from the float student's, a share."
    )
    samples: int = Field(512, ge=1, description="Validation rows that judge.")


class Quantize(Section):
    """From the student to quantized programs; the calibrated PTQ state is checkpoint 0 of QAT."""

    schemes: list[str] = Field(default_factory=lambda: ["w8a8"], description="Schemes beside fp32.")
    overrides: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="By scheme: layer name pattern -> how such layers are kept; default: the scheme's own.",
    )
    mixed: Mixed | None = Field(None, description="Find the layers that need more than the scheme gives.")
    keep_float: list[str] = Field(
        default_factory=list, description="Name patterns of layers that stay fp32 in all schemes."
    )
    group: Literal[32, 64, 128] = Field(32, description="Inputs that share a scale in int4 weights.")
    weights: Literal["absmax", "mse", "gptq", "awq"] = Field(
        "mse",
        description="How int4 weights are chosen; gptq (of `w8` too) and awq by neural-compressor, on the calibration "
        "rows.",
    )
    calibration_samples: int = Field(512, ge=1, description="Training examples that set the activation ranges.")
    calibration: Literal["percentile", "mse"] = Field(
        "percentile", description="How activation ranges are set: by quantile, or by the least squared error."
    )
    percentile: float = Field(0.9999, gt=0.5, le=1, description="Range kept by `percentile`; 1 is min-max.")
    smooth: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="SmoothQuant's alpha: outliers of int8 activations move into weights; 0: none do; default: the "
        "scheme's own.",
    )
    method: Literal["ptq", "qat", "qad", "auto"] = Field(
        "qad",
        description="Calibration only; trained on the float student's logits; on features and teacher too; or the "
        "cheapest of these that keeps gate.max_accuracy_drop (of text: gate.max_perplexity_rise) on validation.",
    )
    steps: int = Field(250, ge=0, description="Training steps of qat and qad; 0 is PTQ only.")
    batch_size: int = Field(16, ge=1, description="Examples per QAT step.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of the weights.")
    scale_learning_rate: float = Field(1e-3, ge=0, description="Peak learning rate of the learned log-scales.")
    hidden_weight: float = Field(1.0, ge=0, description="Weight of the hidden-state loss beside the logit losses.")
    teacher_weight: float = Field(0.1, ge=0, description="Weight of the KL to the teacher's soft labels.")
    evaluate_every: int = Field(50, ge=1, description="Steps between evaluations; the best checkpoint wins.")


class Export(Section):
    """Artefacts: every target times fp32 and every scheme."""

    targets: list[str] = Field(
        default_factory=lambda: ["onnx", "litert", "coreml", "executorch"], description="Formats to write."
    )
    max_length: int | None = Field(None, ge=4, description="Fixed input length of static formats; default: data's.")
    buckets: int | list[int] = Field(
        1, description="Their input lengths: how many, planned on the training text, or which; the last is max_length."
    )
    timeout_seconds: int = Field(900, ge=1, description="A converter that takes longer is stopped.")
    memory_gb: float | None = Field(
        None, gt=0, description="A converter or verifier may allocate this, 10^9 bytes; default: what the machine has."
    )
    jobs: int = Field(2, ge=1, description="Converters (and verifiers) that run at the same time.")

    @pydantic.field_validator("buckets")
    @classmethod
    def _are_some_lengths(cls, buckets: int | list[int]) -> int | list[int]:
        if isinstance(buckets, int):
            if not 1 <= buckets <= MAX_BUCKETS:
                raise ValueError(f"{buckets} lengths; a file may have 1 to {MAX_BUCKETS}, or name them: [16, 32]")
            return buckets
        if len(set(buckets)) != len(buckets):
            raise ValueError("it names a length twice")
        if not buckets or min(buckets) < MIN_TOKENS or len(buckets) > MAX_BUCKETS:
            raise ValueError(f"1 to {MAX_BUCKETS} lengths of {MIN_TOKENS} tokens or more")
        return sorted(buckets)


class Verify(Section):
    """Each artefact on its own runtime, on the real metric."""

    samples: int | None = Field(None, ge=1, description="Test rows per artefact; default: all.")
    slow_samples: int = Field(300, ge=1, description="Test rows where the runtime is a slow reference (stated).")
    timeout_seconds: int = Field(1800, ge=1, description="A verification that takes longer is stopped.")


class Gate(Section):
    """What an artefact must meet; a failure makes `ship` exit with 1. `null` switches a check off."""

    max_accuracy_drop: float | None = Field(0.01, ge=0, description="Below the fp32 student on the same rows.")
    min_program_agreement: float | None = Field(0.99, ge=0, le=1, description="Same answers as the Program.")
    min_teacher_agreement: float | None = Field(None, ge=0, le=1, description="Same answers as the teacher.")
    min_teacher_ratio: float | None = Field(0.96, ge=0, description="Metric as a share of the teacher's.")
    max_perplexity_rise: dict[str, float] = Field(
        default_factory=lambda: {"fp32": 0.005, "w8": 0.005, "w8a8-dynamic": 0.01, "w4": 0.02},
        description="By scheme: a language model's perplexity above the fp32 student's on the same rows, a share.",
    )
    max_bleu_drop: float | None = Field(
        None, ge=0, description="BLEU points below the fp32 student's on texts that both write."
    )
    not_larger: bool = Field(True, description="A quantized file must be smaller than its float sibling.")
    not_slower: bool = Field(True, description="A quantized artefact must not be measurably slower than fp32.")
    size_mb: float | None = Field(
        None, gt=0, description="Budget for the model file, 10^6 bytes; fp32 beside a scheme is exempt."
    )
    p50_ms: float | None = Field(None, gt=0, description="Budget for the median latency.")
    peak_mb: float | None = Field(None, gt=0, description="Budget for peak memory above the idle process, 10^6 bytes.")


class Bench(Section):
    """Latency and memory; never served from a cache."""

    enabled: bool = Field(True, description="Measure at all (`--no-bench` switches it off).")
    devices: list[str] = Field(default_factory=lambda: ["local"], description="Device profiles from devices/.")
    threads: list[int] = Field(default_factory=lambda: [1], description="Thread counts to measure.")
    references: bool = Field(True, description="Measure the teacher and the float student too, where torch is.")
    warmup_runs: int = Field(5, ge=0, description="At least this many untimed runs...")
    warmup_seconds: float = Field(0.5, ge=0, description="...and at least this long.")
    min_runs: int = Field(100, ge=1, description="At least this many timed runs in all blocks...")
    min_seconds: float = Field(3.0, ge=0, description="...and at least this long...")
    max_seconds: float = Field(30.0, gt=0, description="...but no longer.")
    blocks: int = Field(40, ge=1, description="Interleaved blocks per artefact (A B A B ...), shuffled.")
    cold_loads: int = Field(3, ge=0, description="Fresh processes for load time and first inference.")
    timeout_seconds: int = Field(300, ge=1, description="A worker that takes longer is stopped.")
    verify: Literal["golden", "test"] = Field(
        "golden", description="On the device too: golden inputs, or all test rows."
    )
    sustained_seconds: float = Field(0, ge=0, description="A run without a pause, for drift; 0: none.")
    profile: bool = Field(False, description="Time by operator, where the runtime tells.")


class Range(Section):
    """A range to search in."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool = Field(False, description="Search on a logarithmic scale.")
    whole: bool = Field(False, description="Whole numbers only.")


class Tune(Section):
    """Searching for a better student: validation metric against size or measured latency."""

    trials: int = Field(20, ge=1, description="Students to train.")
    against: Literal["size", "latency"] = Field("size", description="The other side of the front.")
    search: dict[str, Range | list[Any]] = Field(
        default_factory=dict,
        description="Recipe path to a range or a list of choices; default: temperature, alpha, learning rate.",
    )
    max_steps: int | None = Field(None, ge=1, description="Training steps of a trial; default: the recipe's own.")
    patience: int = Field(3, ge=1, description="A trial stops early when this many no larger ones were ahead of it.")


class Card(Section):
    """What a model card says and edgekd cannot know (`edgekd bundle --platform hub`)."""

    license: str | None = Field(None, description="Of the student, as the Hub spells it: apache-2.0, cc-by-4.0, ...")
    language: list[str] = Field(default_factory=list, description="ISO 639-1 codes: [en].")
    datasets: list[str] = Field(default_factory=list, description="Hub ids of the data.")
    base_model: str | None = Field(None, description="Hub id of the teacher; default: teacher.model, if it is one.")


class Report(Section):
    """The page at the end."""

    title: str | None = Field(None, description="Heading; default: the recipe's name.")


class Recipe(Section):
    """A whole run, from teacher to report."""

    schema_version: Literal[1] = Field(1, description="Version of this format.")
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run's folder.")
    task: str = Field("text-classification", description="One of `edgekd targets --tasks`.")
    seed: int = Field(0, ge=0, description="Seed of every random choice.")
    teacher: Teacher = Field(default_factory=Teacher, description="The large model.")
    data: Data = Field(default_factory=Data, description="The examples.")
    teach: Teach = Field(default_factory=Teach, description="Running the teacher.")
    distill: Distill = Field(default_factory=Distill, description="Training the student.")
    quantize: Quantize = Field(default_factory=Quantize, description="Quantization.")
    export: Export = Field(default_factory=Export, description="Formats.")
    verify: Verify = Field(default_factory=Verify, description="Proof on the runtimes.")
    gate: Gate = Field(default_factory=Gate, description="What must hold.")
    bench: Bench = Field(default_factory=Bench, description="Measurement.")
    report: Report = Field(default_factory=Report, description="The page.")
    card: Card = Field(default_factory=Card, description="The model card.")
    tune: Tune = Field(default_factory=Tune, description="Search (`edgekd tune`).")

    @pydantic.model_validator(mode="after")
    def _starts_from_a_model(self) -> Recipe:
        for asked, name in ((self.distill.lora, "distill.lora"), (self.data.replay, "data.replay")):
            student = self.distill.student.model_dump(exclude_defaults=True)
            if asked and (not student.get("model") or student.keys() - {"model", "dropout"}):
                raise BadInput(
                    "needs a student that can do something already, whole",
                    where=name,
                    todo="Set distill.student.model, and nothing else of its shape.",
                )
        if self.distill.on_policy and (self.distill.lora or self.data.replay):
            raise BadInput(
                "would train on past the adapter, and past what is replayed",
                where="distill.on_policy",
                todo="Leave it out, or distill.lora and data.replay.",
            )
        names = [one.name for one in self.data.replay]
        if len({*names, "new"}) <= len(names):
            raise BadInput("two have one name, or 'new', which is the new data's", where="data.replay")
        return self

    @property
    def needs(self) -> list[dict[str, Any]]:
        """What the losses need of the teacher, without their weights: so that changing a weight keeps the cache."""
        found = []
        for term in self.distill.losses or []:
            if term.weight and term.pool != "output":
                need: dict[str, Any] = term.model_dump(mode="json", include={"loss", "layers", "pool", "of"})
                if term.layers == "uniform":
                    need["student"] = self.distill.student.model_dump(mode="json", include={"layers", "model"})
                if need not in found:
                    found.append(need)
        return found

    def part(self, paths: Iterable[str]) -> dict[str, Any]:
        """The values at dotted paths (or ``needs``), JSON-able: what a step reads, and so what its key covers."""
        whole = {**self.model_dump(mode="json"), "needs": self.needs}
        return {path: _at(whole, path) for path in sorted(paths)}


class View:
    """A recipe of which only the declared dotted paths can be read.

    A step's key covers exactly the paths it declares; reading anything else would make the key a lie, so
    it raises. Behaves like the Recipe (or section) it wraps for all declared fields.
    """

    def __init__(self, section: Section, allowed: Iterable[str], prefix: str = "") -> None:
        self._section, self._allowed, self._prefix = section, frozenset(allowed), prefix

    def __getattr__(self, name: str) -> Any:
        path = self._prefix + name
        value = getattr(self._section, name)
        if any(path == known or path.startswith(known + ".") for known in self._allowed):
            return value
        if any(known.startswith(path + ".") for known in self._allowed):
            return View(value, self._allowed, path + ".")
        raise AttributeError(f"this step does not declare that it reads '{path}' of the recipe")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override (``a.b=value``, the value in YAML) and validate a recipe file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput("no such recipe", where=str(path), todo="`edgekd init` writes a starter.") from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a recipe file", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 (byte {error.start})", where=str(path), todo="Save it as UTF-8.") from None
    return parse(text, where=str(path), overrides=overrides)


def parse(text: str, *, where: str = "recipe", overrides: Iterable[str] = ()) -> Recipe:
    """Validate a recipe given as YAML text; errors name the line."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(node, where)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise BadInput(f"not valid YAML ({getattr(error, 'problem', error)})", where=where + line) from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise BadInput("a recipe is a mapping of sections", where=where, todo="`edgekd init` writes a starter.")
    for override in overrides:
        _override(value, override)
    try:
        return Recipe.model_validate(value)
    except pydantic.ValidationError as error:
        raise _explain(error, node, where) from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def starter(task: str) -> str:
    """A commented recipe with every field at its default, its description beside it."""
    lines = [
        f"# An edgekd recipe for {task}. Every field is optional but teacher.model and data.train.",
        "# Run it:   edgekd ship recipe.yaml",
        "schema_version: 1",
    ]
    _starter(Recipe, {"task": task, "name": task}, "", lines)
    return "\n".join(lines) + "\n"


def _starter(model: type[Section], values: dict[str, Any], indent: str, lines: list[str]) -> None:
    for name, info in model.model_fields.items():
        if name == "schema_version":
            continue
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            lines += [*([] if indent else [""]), f"{indent}{name}:  # {info.description}"]
            _starter(kind, {}, indent + "  ", lines)
            continue
        value = values.get(name, info.get_default(call_default_factory=True))
        text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        lines.append(f"{indent}{name}: {text}  # {info.description}")


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[key]
    return value


def _override(value: dict[str, Any], override: str) -> None:
    path, equals, raw = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise BadInput(f"'{override}' is not of the form section.field=value", where="--set")
    try:
        new = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise BadInput(f"the value in '{override}' is not valid YAML", where="--set") from None
    assign(value, path, new)


def assign(value: dict[str, Any], path: str, new: Any) -> None:
    """Set the value at a dotted path in place; a number in the path is a place in a list. Raises BadInput."""
    *parents, last = path.strip().split(".")
    at: Any = value
    for key in parents:
        if isinstance(at, dict) and at.get(key) is None:
            at[key] = {}
        at = at[_place(at, key, path)]
        if not isinstance(at, dict | list):
            raise BadInput(f"'{key}' in '{path}' is not a section", where="--set")
    at[_place(at, last, path)] = new


def _place(at: Any, key: str, path: str) -> Any:
    if not isinstance(at, list):
        return key
    if not key.isdecimal() or int(key) >= len(at):
        raise BadInput(f"'{key}' in '{path}' is no place in a list of {len(at)}", where="--set")
    return int(key)


def _children(node: Any) -> dict[str, tuple[Any, Any]]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): (key, child) for key, child in node.value}


def _refuse_duplicates(node: Any, where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if key.value in seen:
                raise BadInput(f"'{key.value}' is given twice", where=f"{where}:{key.start_mark.line + 1}")
            seen.add(key.value)
            _refuse_duplicates(child, where)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_duplicates(child, where)


def _explain(error: pydantic.ValidationError, node: Any, where: str) -> BadInput:
    """The first validation problem in plain words, with its line when it came from the file."""
    first = min(
        error.errors(), key=lambda one: one["type"] != "extra_forbidden"
    )  # a misspelt key is also a missing one
    path = [str(part) for part in first["loc"]]
    line = ""
    for part in path:
        found = _children(node).get(part)
        if found is None:
            break
        line, node = f":{found[0].start_mark.line + 1}", found[1]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = sorted(_fields(path[:-1]))
        hint = closest(path[-1], known)
        return BadInput(f"unknown key '{dotted}'", where=where + line, todo=f"Known here: {', '.join(known)}.{hint}")
    got = first.get("input")
    shown = "" if isinstance(got, dict) else f" (got {got!r})"  # a whole section helps nobody, and may hold a secret
    message = first["msg"][0].lower() + first["msg"][1:]
    return BadInput(f"{dotted}: {message}{shown}", where=where + line, todo="`edgekd schema` lists the fields.")


def _fields(path: list[str]) -> set[str]:
    model: Any = Recipe
    for part in path:
        field = model.model_fields.get(part)
        model = _section(field.annotation) if field else None
        if model is None:
            return set()
    return set(model.model_fields)


def _section(kind: Any) -> type[Section] | None:
    """The section that a field holds, also where it may be null."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind
    return next((found for one in get_args(kind) if (found := _section(one))), None)
