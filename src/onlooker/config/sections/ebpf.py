"""What happens in the kernel: ``ebpf``."""

from __future__ import annotations

from typing import Annotated

from onlooker.config.keys import Items, Key, Section, both
from onlooker.config.kinds import BOOL, COUNT, DURATION, PORT, TEXT, TEXTS, Choice, Duration, Int, ListOf, Switch
from onlooker.config.sections.discovery import GlobSelector
from onlooker.config.sections.words import PAYLOAD_UNUSED

_POSITIVE = Duration(positive=True)
_ACTION = Choice("include", "exclude", "obfuscate")
_RINGS = "records are drained on a timer that follows the rings' fill; there is nothing to tune"
_LATER = "the protocol that it belongs to is not parsed yet"
_CACHES = "the parser that it belongs to bounds its own tables"


class BufferSizes(Section, frozen=True):
    """How many payload bytes are kept of a request, by protocol."""

    unused = "records have fixed sizes, which hold what the parsers need; larger ones are not built yet"

    http: Annotated[int, Key(Int(0, 262144), "HTTP.", both("BPF_BUFFER_SIZE_HTTP"))] = 0
    kafka: Annotated[int, Key(Int(0, 65536), "Kafka.", both("BPF_BUFFER_SIZE_KAFKA"))] = 0
    mssql: Annotated[int, Key(Int(0, 65536), "MSSQL.", both("BPF_BUFFER_SIZE_MSSQL"))] = 0
    mysql: Annotated[int, Key(Int(0, 65536), "MySQL.", both("BPF_BUFFER_SIZE_MYSQL"))] = 0
    postgres: Annotated[int, Key(Int(0, 65536), "PostgreSQL.", both("BPF_BUFFER_SIZE_POSTGRES"))] = 0
    tcp: Annotated[int, Key(Int(0, 65536), "Anything else.", both("BPF_BUFFER_SIZE_TCP"))] = 0


class MapsConfig(Section, frozen=True):
    """Sizes of kernel maps."""

    unused = "kernel state lives with its socket or task, so most maps have no size to scale"

    global_scale_factor: Annotated[int, Key(Int(-3, 3), "Power of two applied to the size of every map.")] = 0


class RedisDbCache(Section, frozen=True):
    """Which Redis database a connection has selected."""

    unused = _LATER

    enabled: Annotated[bool, Key(BOOL, "Remember it.", both("BPF_REDIS_DB_CACHE_ENABLED"))] = False
    max_size: Annotated[int, Key(COUNT, "For how many connections.", both("BPF_REDIS_DB_CACHE_MAX_SIZE"))] = 1000


class Aws(Section, frozen=True):
    """AWS S3 and SQS."""

    enabled: Annotated[bool, Key(BOOL, "Recognise them.", both("HTTP_AWS_ENABLED"))] = False


class Elasticsearch(Section, frozen=True):
    """Elasticsearch and OpenSearch."""

    enabled: Annotated[bool, Key(BOOL, "Recognise them.", both("HTTP_ELASTICSEARCH_ENABLED"))] = False


class Graphql(Section, frozen=True):
    """GraphQL."""

    enabled: Annotated[bool, Key(BOOL, "Recognise it.", both("HTTP_GRAPHQL_ENABLED"))] = False


class Jsonrpc(Section, frozen=True):
    """JSON-RPC."""

    enabled: Annotated[bool, Key(BOOL, "Recognise it.", both("HTTP_JSONRPC_ENABLED"))] = False


class Sqlpp(Section, frozen=True):
    """SQL++ (N1QL)."""

    enabled: Annotated[bool, Key(BOOL, "Recognise it.", both("HTTP_SQLPP_ENABLED"))] = False
    endpoint_patterns: Annotated[
        tuple[str, ...], Key(TEXTS, "Paths that take it.", both("HTTP_SQLPP_ENDPOINT_PATTERNS"))
    ] = ("/query/service",)


class RuleMatch(Section, frozen=True):
    """What a rule applies to."""

    patterns: Annotated[tuple[str, ...], Key(TEXTS, "Header names, as globs.")] = ()
    case_sensitive: Annotated[bool, Key(BOOL, "Whether letters' case counts.")] = False
    obfuscation_json_paths: Annotated[tuple[str, ...], Key(TEXTS, "Parts of a JSON body to hide.")] = ()
    url_path_patterns: Annotated[tuple[str, ...], Key(TEXTS, "Paths, as globs.")] = ()
    methods: Annotated[
        tuple[str, ...],
        Key(ListOf(Choice("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")), "Methods."),
    ] = ()
    response_status_code: Annotated[str, Key(TEXT, "A range of status codes, such as `500-599`.")] = ""


class EnrichmentRule(Section, frozen=True):
    """One rule about headers or bodies; the first that matches decides."""

    action: Annotated[str, Key(_ACTION, "What is done.")] = "exclude"
    type: Annotated[str, Key(Choice("headers", "body"), "What it is about.")] = "headers"
    scope: Annotated[str, Key(Choice("request", "response", "all"), "Which side.")] = "all"
    match: RuleMatch = RuleMatch()
    obfuscation_string: Annotated[str, Key(TEXT, "What hidden text is replaced by.")] = ""


class EnrichmentDefault(Section, frozen=True):
    """What happens without a matching rule."""

    body: Annotated[str, Key(_ACTION, "To bodies.")] = "exclude"
    headers: Annotated[str, Key(_ACTION, "To headers.")] = "exclude"


class EnrichmentPolicy(Section, frozen=True):
    """Defaults of the rules."""

    default_action: EnrichmentDefault = EnrichmentDefault()
    obfuscation_string: Annotated[
        str, Key(TEXT, "What hidden text is replaced by.", both("HTTP_ENRICHMENT_OBFUSCATION_STRING"))
    ] = "***"


class Enrichment(Section, frozen=True):
    """Headers and bodies as span attributes."""

    enabled: Annotated[bool, Key(BOOL, "Switch.", both("HTTP_ENRICHMENT_ENABLED"))] = False
    policy: EnrichmentPolicy = EnrichmentPolicy()
    rules: Annotated[tuple[EnrichmentRule, ...], Key(Items(EnrichmentRule), "Rules, in order.")] = ()


class Gateway(Section, frozen=True):
    """A host that speaks the OpenAI API."""

    host: Annotated[str, Key(TEXT, "Its name.")] = ""
    port: Annotated[int, Key(PORT, "Its port; 0 for any.")] = 0
    provider: Annotated[str, Key(TEXT, "What `gen_ai.provider.name` says.")] = ""


def _vendor(name: str, env: str) -> Key:
    return Key(BOOL, f"Recognise {name}.", both(env))


class Anthropic(Section, frozen=True):
    """Anthropic."""

    enabled: Annotated[bool, _vendor("it", "HTTP_ANTHROPIC_ENABLED")] = False


class Bedrock(Section, frozen=True):
    """AWS Bedrock."""

    enabled: Annotated[bool, _vendor("it", "HTTP_BEDROCK_ENABLED")] = False


class Embedding(Section, frozen=True):
    """Embedding services."""

    enabled: Annotated[bool, _vendor("them", "HTTP_GENAI_EMBEDDING_ENABLED")] = False


class Gemini(Section, frozen=True):
    """Gemini."""

    enabled: Annotated[bool, _vendor("it", "HTTP_GEMINI_ENABLED")] = False


class Mcp(Section, frozen=True):
    """Model Context Protocol."""

    enabled: Annotated[bool, _vendor("it", "HTTP_MCP_ENABLED")] = False


class Ollama(Section, frozen=True):
    """Ollama."""

    enabled: Annotated[bool, _vendor("it", "HTTP_OLLAMA_ENABLED")] = False


class Openai(Section, frozen=True):
    """OpenAI."""

    enabled: Annotated[bool, _vendor("it", "HTTP_OPENAI_ENABLED")] = False


class OpenaiCompatible(Section, frozen=True):
    """Gateways that speak the OpenAI API."""

    enabled: Annotated[bool, _vendor("them", "HTTP_OPENAI_COMPATIBLE_ENABLED")] = False
    gateways: Annotated[tuple[Gateway, ...], Key(Items(Gateway), "The gateways.")] = ()


class Qwen(Section, frozen=True):
    """Qwen."""

    enabled: Annotated[bool, _vendor("it", "HTTP_QWEN_ENABLED")] = False


class Rerank(Section, frozen=True):
    """Rerank services."""

    enabled: Annotated[bool, _vendor("them", "HTTP_RERANK_ENABLED")] = False


class Retrieval(Section, frozen=True):
    """Vector databases."""

    enabled: Annotated[bool, _vendor("them", "HTTP_RETRIEVAL_ENABLED")] = False


class Genai(Section, frozen=True):
    """Calls of language models."""

    anthropic: Anthropic = Anthropic()
    bedrock: Bedrock = Bedrock()
    embedding: Embedding = Embedding()
    gemini: Gemini = Gemini()
    mcp: Mcp = Mcp()
    ollama: Ollama = Ollama()
    openai: Openai = Openai()
    openai_compatible: OpenaiCompatible = OpenaiCompatible()
    qwen: Qwen = Qwen()
    rerank: Rerank = Rerank()
    retrieval: Retrieval = Retrieval()


class PayloadHttp(Section, frozen=True):
    """What is read from HTTP payloads beyond the request itself."""

    unused = PAYLOAD_UNUSED

    aws: Aws = Aws()
    elasticsearch: Elasticsearch = Elasticsearch()
    enrichment: Enrichment = Enrichment()
    genai: Genai = Genai()
    graphql: Graphql = Graphql()
    jsonrpc: Jsonrpc = Jsonrpc()
    sqlpp: Sqlpp = Sqlpp()


class PayloadExtraction(Section, frozen=True):
    """What is read from payloads."""

    http: PayloadHttp = PayloadHttp()


class LogFieldNames(Section, frozen=True):
    """Names of the fields in log lines."""

    span_id: Annotated[str, Key(TEXT, "Field of the span id.")] = "span_id"
    trace_id: Annotated[str, Key(TEXT, "Field of the trace id.")] = "trace_id"


class LogPlainText(Section, frozen=True):
    """Log lines that are no JSON."""

    enabled: Annotated[bool, Key(BOOL, "Switch.")] = True
    multiline: Annotated[str, Key(Choice("first_line", "each_line", "last_line"), "Which lines.")] = "first_line"
    placement: Annotated[str, Key(Choice("prefix", "suffix"), "Which end of the line.")] = "suffix"


class LogService(Section, frozen=True):
    """Services whose logs are enriched."""

    service: Annotated[tuple[GlobSelector, ...], Key(Items(GlobSelector), "Selectors.")] = ()


class LogEnricher(Section, frozen=True):
    """Trace ids written into the log lines of services."""

    unused = "nothing is ever written into what an application writes; join logs by time and process instead"

    services: Annotated[tuple[LogService, ...], Key(Items(LogService), "Services; empty for off.")] = ()
    async_writer_channel_len: Annotated[
        int, Key(COUNT, "Queue length.", both("BPF_LOG_ENRICHER_ASYNC_WRITER_CHANNEL_LEN"))
    ] = 500
    async_writer_workers: Annotated[int, Key(COUNT, "Writers.", both("BPF_LOG_ENRICHER_ASYNC_WRITER_WORKERS"))] = 8
    cache_size: Annotated[int, Key(COUNT, "Files kept.", both("BPF_LOG_ENRICHER_CACHE_SIZE"))] = 128
    cache_ttl: Annotated[float, Key(DURATION, "How long.", both("BPF_LOG_ENRICHER_CACHE_TTL"))] = 1800.0
    field_names: LogFieldNames = LogFieldNames()
    plain_text: LogPlainText = LogPlainText()


class Ebpf(Section, frozen=True):
    """What happens in the kernel."""

    capture_hook: Annotated[
        str,
        Key(Choice("auto", "tracepoint", "fexit", "kprobe", "raw_syscalls"),
            "Where the kernel is asked for socket traffic. `auto` takes the best that this kernel has; the others are "
            "for tests and for comparing. `raw_syscalls` taxes every system call of the machine and is never taken by "
            "itself."),
    ] = "auto"  # fmt: skip

    context_propagation: Annotated[
        str,
        Key(TEXT, "Whether `traceparent` is written into requests: `disabled`, `headers`, `tcp`, `all`.",
            both("BPF_CONTEXT_PROPAGATION"), unused="nothing is ever written into a request yet; "
                "incoming headers are read"),
    ] = "disabled"  # fmt: skip
    track_request_headers: Annotated[
        bool,
        Key(BOOL, "Whether the `traceparent` of incoming requests is read.", both("BPF_TRACK_REQUEST_HEADERS"),
            unused="it always is, at no extra cost"),
    ] = False  # fmt: skip
    disable_black_box_cp: Annotated[
        bool,
        Key(BOOL, "Do not join the two sides of a connection on this host.", both("BPF_DISABLE_BLACK_BOX_CP")),
    ] = False
    http_request_timeout: Annotated[
        float,
        Key(DURATION, "After how long a request without a response is given up as status 408; 0 for never.",
            both("BPF_HTTP_REQUEST_TIMEOUT"), unused="no status is ever invented: a request without a "
                "response becomes an error"),
    ] = 0.0  # fmt: skip
    dns_request_timeout: Annotated[
        float,
        Key(
            _POSITIVE,
            "After how long a DNS query counts as unanswered.",
            both("BPF_DNS_REQUEST_TIMEOUT"),
            unused=_LATER,
        ),
    ] = 5.0
    max_transaction_time: Annotated[
        float,
        Key(
            _POSITIVE,
            "How long a server request may be the parent of client requests.",
            both("BPF_MAX_TRANSACTION_TIME"),
        ),
    ] = 300.0
    batch_length: Annotated[int, Key(Int(1), "Records in a batch.", both("BPF_BATCH_LENGTH"), unused=_RINGS)] = 100
    batch_timeout: Annotated[
        float, Key(DURATION, "How long a batch may wait.", both("BPF_BATCH_TIMEOUT"), unused=_RINGS)
    ] = 1.0
    wakeup_len: Annotated[int, Key(COUNT, "Records before a wake-up.", both("BPF_WAKEUP_LEN"), unused=_RINGS)] = 500
    stats_wakeup_data_bytes: Annotated[
        int, Key(COUNT, "Bytes before a wake-up.", both("STATS_WAKEUP_DATA_BYTES"), unused=_RINGS)
    ] = 4096
    high_request_volume: Annotated[
        bool,
        Key(BOOL, "Finish a request at its response's first bytes.", both("BPF_HIGH_REQUEST_VOLUME"),
            unused="a request always ends with its response"),
    ] = False  # fmt: skip
    buffer_sizes: BufferSizes = BufferSizes()
    maps_config: MapsConfig = MapsConfig()
    redis_db_cache: RedisDbCache = RedisDbCache()
    payload_extraction: PayloadExtraction = PayloadExtraction()
    log_enricher: LogEnricher = LogEnricher()
    bpf_debug: Annotated[
        bool,
        Key(
            BOOL,
            "Kernel programs write to the trace pipe.",
            both("BPF_DEBUG"),
            unused="the programs have no such output",
        ),
    ] = False
    bpf_fs_path: Annotated[
        str, Key(TEXT, "Where the BPF file system is.", both("BPF_FS_PATH"), unused="nothing is pinned")
    ] = "/sys/fs/bpf/"
    protocol_debug_print: Annotated[
        bool,
        Key(BOOL, "Print what the parsers see.", both("PROTOCOL_DEBUG_PRINT"), unused="payloads are never printed"),
    ] = False
    force_bpf_map_reader: Annotated[
        str,
        Key(
            Choice("auto", "batch", "legacy"),
            "How maps are read.",
            both("FORCE_BPF_MAP_READER"),
            unused="chosen by trying",
        ),
    ] = "auto"
    override_bpfloop_enabled: Annotated[
        bool,
        Key(
            BOOL,
            "Use `bpf_loop` on kernels that hide it.",
            both("OVERRIDE_BPF_LOOP_ENABLED"),
            unused="`bpf_loop` is not used",
        ),
    ] = False
    traffic_control_backend: Annotated[
        str,
        Key(Choice("auto", "tc", "tcx"), "How packet programs are attached.", both("BPF_TC_BACKEND"),
            unused="no packet program is attached"),
    ] = "auto"  # fmt: skip
    go_http_client_buffer_timeout: Annotated[
        float,
        Key(DURATION, "How long a Go client span may wait for its request.", both("BPF_GO_HTTP_CLIENT_BUFFER_TIMEOUT"),
            unused="Go programs are treated as any other"),
    ] = 1.0  # fmt: skip
    heuristic_sql_detect: Annotated[
        bool,
        Key(
            BOOL,
            "Guess SQL in unknown protocols.",
            both("HEURISTIC_SQL_DETECT"),
            unused="unknown protocols are not guessed at",
        ),
    ] = False
    instrument_cuda: Annotated[
        str, Key(Switch(), "Watch CUDA calls.", both("INSTRUMENT_CUDA"), unused="CUDA calls are not watched yet")
    ] = "auto"
    couchbase_db_cache_size: Annotated[
        int, Key(COUNT, "Cache of bucket names.", both("COUCHBASE_DB_CACHE_SIZE"), unused=_LATER)
    ] = 1024
    kafka_topic_uuid_cache_size: Annotated[
        int, Key(COUNT, "Cache of topic names.", ("OTEL_KAFKA_TOPIC_UUID_CACHE_SIZE",), unused=_LATER)
    ] = 1024
    mongo_requests_cache_size: Annotated[
        int, Key(COUNT, "Cache of open requests.", both("BPF_MONGO_REQUESTS_CACHE_SIZE"), unused=_CACHES)
    ] = 1024
    mssql_prepared_statements_cache_size: Annotated[
        int,
        Key(COUNT, "Cache of prepared statements.", both("BPF_MSSQL_PREPARED_STATEMENTS_CACHE_SIZE"), unused=_CACHES),
    ] = 1024
    mysql_prepared_statements_cache_size: Annotated[
        int,
        Key(COUNT, "Cache of prepared statements.", both("BPF_MYSQL_PREPARED_STATEMENTS_CACHE_SIZE"), unused=_CACHES),
    ] = 1024
    postgres_prepared_statements_cache_size: Annotated[
        int,
        Key(
            COUNT, "Cache of prepared statements.", both("BPF_POSTGRES_PREPARED_STATEMENTS_CACHE_SIZE"), unused=_CACHES
        ),
    ] = 1024
