/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP/1 exchanges: follow both directions of a connection through their messages, pair each
 * response with its request, and emit one record a pair.
 *
 * The two directions may run at the same time on two CPUs.  Each writes its own stream only;
 * an exchange is handed over by its `open` mark: the request side sets it, the response side
 * clears it.  A request that arrives while one is open is pipelined: its record goes out as two
 * halves, which user space joins by connection and sequence.
 */
#pragma once

struct http_head {
	HTTP_RECORD_HEAD;
};

static __always_inline void copy_words(void *to, const void *from, const __u32 bytes)
{
	__u64 *t = to;
	const __u64 *f = from;

#pragma unroll
	for (__u32 i = 0; i < bytes / 8; i++)
		t[i] = f[i];
}

static __always_inline void zero_words(void *to, const __u32 bytes)
{
	__u64 *t = to;

#pragma unroll
	for (__u32 i = 0; i < bytes / 8; i++)
		*(volatile __u64 *)&t[i] = 0;
}

static __always_inline void fill_connection(struct http_head *r, const struct connection *c)
{
	r->role = c->request_direction == DIRECTION_RECEIVE ? ROLE_SERVER : ROLE_CLIENT;
	r->connection_id = c->id;
	copy_words(r->local_address, c->local_address, 16);
	copy_words(r->remote_address, c->remote_address, 16);
	r->local_port = c->local_port;
	r->remote_port = c->remote_port;
	r->family = c->family;
	r->tls = c->tls;
}

static __always_inline void fill_request(struct http_head *r, const struct exchange *x)
{
	r->method = x->method;
	r->tgid = x->tgid;
	r->tid = x->tid;
	r->sequence = x->sequence;
	r->target_length = x->target_length;
	r->target_start = x->target_start;
	r->host_length = x->host_length;
	r->request_start_mono_ns = x->start_mono_ns;
	r->request_end_mono_ns = x->end_mono_ns;
	r->request_body_bytes = x->body_bytes;
	r->text_length = x->text_length;
	copy_words(r->trace_id, x->context.trace_id, 16);
	copy_words(r->span_id, &x->context.span_id, 8);
	copy_words(r->parent_span_id, &x->context.parent_span_id, 8);
	zero_words(&r->trace_flags, 8);
	r->trace_flags = x->context.trace_flags;
	r->parent_source = x->context.source;
}

/* One record: of exchange `which`, with what `w` says of its end. */
static __always_inline void emit_exchange(struct connection *c, struct work *w, __u32 which)
{
	struct exchange *x = &c->exchanges[which & 1];
	const struct stream *s = &c->streams[(!c->request_direction) & 1];
	const __u8 *text = c->texts[which & 1];
	bool half = w->flags & RESPONSE_HALF, is_long = !half && x->text_length > HTTP_TEXT_SIZE;
	struct http_head *r;

	if (is_long)
		r = (struct http_head *)ring_reserve(ring_512, struct http_long_record);
	else
		r = (struct http_head *)ring_reserve(ring_256, struct http_record);
	if (!r)
		return;
	fill_connection(r, c);
	fill_request(r, x);
	r->error = w->error;
	r->flags = w->flags;
	if (which == AHEAD) {
		r->status = 0;
		r->response_start_mono_ns = 0;
		r->response_end_mono_ns = 0;
		r->response_body_bytes = 0;
	} else {
		r->status = s->status;
		r->response_start_mono_ns = s->status ? s->start_mono_ns : 0;
		r->response_end_mono_ns = w->end_mono_ns;
		r->response_body_bytes = s->body_bytes;
	}
	if (half) {
		/* whatever else stands there belongs to another request */
		r->sequence = c->responses;
		r->text_length = 0;
	}
	copy_words(((struct http_record *)r)->text, text, HTTP_TEXT_SIZE);
	if (is_long) {
		r->kind = RECORD_HTTP_LONG;
		copy_words(((struct http_long_record *)r)->text + HTTP_TEXT_SIZE, text + HTTP_TEXT_SIZE,
			   HTTP_LONG_TEXT_SIZE - HTTP_TEXT_SIZE);
		ring_submit(ring_512, r);
	} else {
		r->kind = RECORD_HTTP;
		/* they come by the thousand: how full the ring is, is asked for one in eight */
		if (w->submitted++ & 7)
			bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
		else
			ring_submit(ring_256, r);
	}
}

/*
 * What the last step found out becomes a record, and the connection's next request may take its place.
 * A global function, like http1_step: the verifier walks it once and by itself.
 */
SUBPROGRAM(emit)
{
	struct stream *response;
	struct exchange *x;
	bool ahead, whole, so_far;

	if (!c || !w)
		return 0;
	response = &c->streams[(!c->request_direction) & 1];
	x = &c->exchanges[CURRENT];
	ahead = w->emit == EMIT_AHEAD;
	so_far = w->emit == EMIT_SO_FAR;
	whole = !ahead && x->open && x->sequence == c->responses;
	if (so_far && !whole)
		return 0;

	if (ahead) {
		w->flags = c->exchanges[AHEAD].flags;
		w->error = REQUEST_OK;
	} else {
		w->flags |= response->flags;
		if (whole) {
			const struct stream *request = &c->streams[c->request_direction & 1];

			w->flags |= x->flags;
			if (request->phase != PHASE_START && c->requests == c->responses + 1)
				w->flags |= REQUEST_INCOMPLETE;
			context_leave(c, x, (__u32)w->pid_tgid);
			if (c->request_direction == DIRECTION_RECEIVE)
				resolve(&x->context, w->end_mono_ns);
		} else {
			w->flags |= RESPONSE_HALF;
		}
	}
	if (w->emit != EMIT_DROP)
		emit_exchange(c, w, ahead ? AHEAD : CURRENT);
	w->emit = EMIT_NONE;
	if (ahead || so_far)
		return 0;
	if (whole)
		x->open = 0;
	c->responses++;
	response->status = 0;
	response->flags = 0;
	response->body_bytes = 0;
	return 0;
}

/* A step's word that the oldest open request is over. */
static __always_inline void response_over(struct work *w, __u64 end_mono_ns, __u16 flags)
{
	w->emit = EMIT_RESPONSE;
	w->end_mono_ns = end_mono_ns;
	w->flags = flags;
	w->error = REQUEST_OK;
}

/* A response that ends with its connection, on a socket whose end is not seen. */
static __always_inline bool lingers(const struct connection *c, const struct stream *response)
{
	return response->phase == PHASE_CLOSE && c->family == AF_UNIX && c->request_direction == DIRECTION_RECEIVE;
}

static __always_inline void response_so_far(struct work *w)
{
	w->emit = EMIT_SO_FAR;
	w->end_mono_ns = w->now_mono_ns;
	w->flags = RESPONSE_TO_CLOSE | RESPONSE_LINGERS;
	w->error = REQUEST_OK;
}

/* The connection is over: what is open ends, in most cases with an error. */
static __always_inline void abandon(struct connection *c, struct work *w, __u64 now, __u8 error)
{
	struct stream *response = &c->streams[(!c->request_direction) & 1];

	if (c->protocol != PROTOCOL_HTTP1 || c->requests == c->responses)
		return;
	for (int i = 0; i < 2; i++) {
		w->emit = EMIT_RESPONSE;
		w->end_mono_ns = now;
		w->error = error;
		w->flags = response->status ? RESPONSE_INCOMPLETE : 0;
		if (response->phase == PHASE_CLOSE && error != REQUEST_RESET && error != REQUEST_TIMED_OUT) {
			/* as HTTP/1.0 ends a response: with the connection */
			w->end_mono_ns = response->last_mono_ns;
			w->flags = RESPONSE_TO_CLOSE;
			w->error = REQUEST_OK;
		}
		if (response->phase == PHASE_LOST) {
			/* there was a response, at least in part, and it was counted as lost */
			w->flags = BYTES_UNSEEN;
			w->error = REQUEST_OK;
			if (!response->status)
				w->emit = EMIT_DROP;
		}
		if (i) {
			/* what else waits, waits in user space */
			c->responses = c->requests - 1;
			w->flags |= REQUESTS_OVER;
		}
		if (lingers(c, response))
			w->flags |= RESPONSE_LINGERS; /* takes the place of what was sent before */
		emit(c, w);
		response->phase = PHASE_START;
		if (c->requests == c->responses)
			break;
	}
}

/* The first byte of a request. */
static __always_inline struct exchange *begin_request(struct connection *c, struct stream *s, __u64 pid_tgid)
{
	__u32 which = c->exchanges[CURRENT].open ? AHEAD : CURRENT;
	struct exchange *x = &c->exchanges[which & 1];

	x->start_mono_ns = s->start_mono_ns;
	x->end_mono_ns = s->start_mono_ns;
	x->body_bytes = 0;
	x->sequence = c->requests;
	x->tgid = pid_tgid >> 32;
	x->tid = (__u32)pid_tgid;
	x->flags = which == AHEAD ? REQUEST_HALF : 0;
	x->text_length = 0;
	x->target_length = 0;
	x->target_start = 0;
	x->host_length = 0;
	x->method = 0;
	x->counted = 0;
	x->context.source = PARENT_NONE;
	zero_words(c->texts[which & 1], HTTP_TEXT_SIZE);
	return x;
}

#define SHORT_TEXT 32

/* Copy up to SHORT_TEXT bytes in whole words; what is behind them becomes zero.  A helper costs more than that. */
static __always_inline void copy_short(__u8 *to, const __u8 *from, __u32 length)
{
#pragma unroll
	for (__u32 i = 0; i < SHORT_TEXT; i += 8) {
		__u64 word = *(const __u64 *)(from + i);

		if (i + 8 >= length) {
			*(__u64 *)(to + i) = word & (~0ULL >> ((i + 8 - length) * 8 & 63));
			break;
		}
		*(__u64 *)(to + i) = word;
	}
}

/* Keep the start line (or what there is of it, cut) as the record's text. */
static __always_inline void keep_line(struct connection *c, struct exchange *x, __u32 which,
				      const struct http1_window *w, __u32 line, bool cut)
{
	__u32 method_length, length = line;
	__u8 *text = c->texts[which & 1];

	x->method = http1_method(load8(w->bytes, 0), &method_length);
	if (!x->method) {
		for (method_length = 3; method_length < 16; method_length++)
			if (w->bytes[method_length] == ' ')
				break;
	}
	x->target_start = method_length + 1;
	if (!cut && line > 9) {
		if (w->bytes[(line - 9) & WINDOW_MASK] == ' ' && http1_version(load8(w->bytes, line - 8)))
			length = line - 9;
	}
	x->target_length = length > x->target_start ? length - x->target_start : 0;
	if (cut || length > HTTP_LONG_TEXT_SIZE)
		x->flags |= TEXT_TRUNCATED;
	if (length > HTTP_LONG_TEXT_SIZE)
		length = HTTP_LONG_TEXT_SIZE;
	if (length > HTTP_TEXT_SIZE)
		zero_words(text + HTTP_TEXT_SIZE, HTTP_LONG_TEXT_SIZE - HTTP_TEXT_SIZE);
	if (length && length <= SHORT_TEXT)
		copy_short(text, w->bytes, length);
	else
		bpf_probe_read_kernel(text, at_most(length, HTTP_LONG_TEXT_SIZE), w->bytes);
	x->text_length = length;
}

/* Append the value of Host behind the target. */
static __always_inline void keep_host(struct connection *c, struct exchange *x, __u32 which,
				      const struct http1_window *w)
{
	__u32 at = x->text_length, length = w->host_length;
	__u8 *text = c->texts[which & 1];

	if (!length || length > 255 || at > 255 || x->flags & TEXT_TRUNCATED)
		return;
	if (at + length > HTTP_LONG_TEXT_SIZE)
		return;
	if (length <= SHORT_TEXT && at <= HTTP_TEXT_SIZE - SHORT_TEXT) {
		copy_short(text + at_most(at, HTTP_TEXT_SIZE - SHORT_TEXT), w->bytes + (w->host & WINDOW_MASK), length);
		x->host_length = length;
		x->text_length = at + length;
		return;
	}
	if (at <= HTTP_TEXT_SIZE && at + length > HTTP_TEXT_SIZE)
		zero_words(text + HTTP_TEXT_SIZE, HTTP_LONG_TEXT_SIZE - HTTP_TEXT_SIZE);
	if (bpf_probe_read_kernel(text + at_most(at, 255), at_most(length, 255), w->bytes + (w->host & WINDOW_MASK)))
		return;
	x->host_length = length;
	x->text_length = at + length;
}

/* A start line longer than a record: the whole of it in a record of its own, straight from the caller's buffer. */
static __always_inline void emit_line(struct connection *c, struct exchange *x, const struct source *source)
{
	struct http_text_record *record;
	__u32 length = source->length - source->offset;

	if (source->iov_count != 1)
		return;
	record = ring_reserve(ring_4096, struct http_text_record);
	if (!record)
		return;
	if (length > TEXT_RECORD_SIZE)
		length = TEXT_RECORD_SIZE;
	if (bpf_probe_read_user(record->text, at_most(length, TEXT_RECORD_SIZE), (void *)(source->iov[0].base + source->offset))) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return;
	}
	record->kind = RECORD_HTTP_TEXT;
	zero_words(record->pad1, 16);
	record->pad0[0] = record->pad0[1] = record->pad0[2] = 0;
	record->tgid = x->tgid;
	record->connection_id = c->id;
	record->sequence = x->sequence;
	record->text_length = length;
	ring_submit(ring_4096, record);
}

/* A request's head is complete; the source stands behind it. */
static __always_inline void request_head(struct connection *c, struct stream *s, struct work *w, __u32 which)
{
	struct exchange *x = &c->exchanges[which & 1];
	__u64 bit = 1ULL << (x->sequence & (PIPELINE_MAX - 1));

	x->end_mono_ns = w->now_mono_ns;
	if (x->method == HTTP_METHOD_HEAD)
		c->head_requests |= bit;
	else
		c->head_requests &= ~bit;
	if (x->method == HTTP_METHOD_CONNECT)
		c->connect_requests |= bit;
	else
		c->connect_requests &= ~bit;
	s->body_bytes = 0;
	if (w->head.flags & HEAD_CHUNKED) {
		s->phase = PHASE_CHUNK;
		zero_words(&s->chunk, sizeof(s->chunk));
	} else if (w->head.flags & HEAD_HAS_LENGTH && w->head.content_length) {
		s->phase = PHASE_BODY;
		s->remaining = w->head.content_length;
	} else {
		s->phase = PHASE_START;
	}
	if (which == AHEAD) {
		x->body_bytes = w->head.content_length; /* still to come */
		if (c->requests - c->responses >= PIPELINE_MAX)
			count_loss(LOSS_PIPELINE_TOO_DEEP);
		w->emit = EMIT_AHEAD;
	}
	w->stamp = w->stream_end - (w->source.length - w->source.offset) - w->head.length;
	w->head_of = 1 + which;
}

/* Where the TCP stream stands, in one direction. */
static __always_inline __u32 tcp_position(struct sock *sk, __u32 direction)
{
	struct tcp_sock *tcp = tcp_of(sk);
	__u32 position;
	__u8 state;

	if (!tcp)
		return 0;
	if (direction == DIRECTION_SEND)
		return KERNEL_FIELD(tcp, write_seq);
	position = KERNEL_FIELD(tcp, copied_seq);
	state = KERNEL_FIELD(sk, __sk_common.skc_state);
	/* the end of a stream takes a number too, and is read with the last bytes */
	if (state > TCP_ESTABLISHED && state != TCP_FIN_WAIT1 && state != TCP_FIN_WAIT2 &&
	    position == KERNEL_FIELD(tcp, rcv_nxt))
		position--;
	return position;
}

/*
 * When the first bytes of a connection, which are being read, had come.  A server that is busy accepts and reads late, and
 * its client waits: that wait is the request's.  Of later bytes the kernel keeps no such time.
 */
static __always_inline __u64 arrival(struct connection *c, struct sock *sk, __u32 direction, int result, __u64 now)
{
	struct tcp_sock *tcp;
	__u64 copied, came;

	if (direction != DIRECTION_RECEIVE || c->streams[DIRECTION_RECEIVE].bytes != result || c->family == AF_UNIX ||
	    KERNEL_FIELD(sk, sk_protocol) != IPPROTO_TCP)
		return now;
	tcp = tcp_of(sk);
	if (!tcp)
		return now;
	/* a connection that is older than the agent has had bytes before */
	copied = KERNEL_FIELD(tcp, bytes_received) - (KERNEL_FIELD(tcp, rcv_nxt) - KERNEL_FIELD(tcp, copied_seq));
	if (copied != result)
		return now;
	/* the kernel begins to measure the round trip with the first segment */
	came = KERNEL_FIELD(tcp, rcv_rtt_est.time) * 1000;
	return came && came < now ? came : now;
}

/*
 * What the identity of a request at both ends of its connection is made of; see peer_key and stamp.
 * And how many bytes have moved past the hooks since the last transfer (splice, another process).
 */
static __always_inline void locate(struct connection *c, struct sock *sk, struct work *w, __u32 direction)
{
	struct stream *s = &c->streams[direction & 1];

	w->unseen = 0;
	if (!sk) {
		/* plaintext: what stands on the wire counts otherwise */
		w->stream_end = (__u32)s->bytes;
		w->peer_socket = 0;
		return;
	}
	if (c->family == AF_UNIX) {
		if (direction != c->request_direction)
			return;
		w->stream_end = (__u32)s->bytes;
		w->peer_socket = direction == DIRECTION_SEND ?
					 (__u64)BPF_CORE_READ((struct unix_sock *)sk, peer) :
					 (__u64)sk;
		return;
	}
	w->stream_end = tcp_position(sk, direction);
	if (direction == DIRECTION_SEND)
		w->stream_end += not_yet_taken(w);
	if (s->tcp_known) {
		__s32 unseen = (__s32)(w->stream_end - w->source.length - s->tcp_seq);

		if (unseen > 0)
			w->unseen = unseen;
	}
	s->tcp_seq = w->stream_end;
}

/*
 * Begin to follow where the TCP stream stands.  Not where positions count other bytes than the hooks: TLS in the
 * kernel (an upper layer protocol), MPTCP.
 */
static __always_inline void locate_first(struct connection *c, struct sock *sk)
{
	if (!sk || c->family == AF_UNIX || KERNEL_FIELD(sk, sk_protocol) != IPPROTO_TCP ||
	    BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_ulp_ops))
		return;
	for (int i = 0; i < 2; i++) {
		c->streams[i].tcp_seq = tcp_position(sk, i);
		c->streams[i].tcp_known = 1;
	}
}

/* Who the request is whose head is complete, and whose child. */
SUBPROGRAM_1(request_context, direction)
{
	bool client = direction == DIRECTION_SEND;
	struct exchange *x;
	__u32 which;

	if (!c || !w)
		return 0;
	which = w->head_of - 1;
	x = &c->exchanges[which & 1];
	w->head_of = 0;
	context_new(&x->context, &w->head, c->id, x->sequence);
	if (client)
		context_inherit(&x->context, w->pid_tgid, w->now_mono_ns);
	if (x->context.source != PARENT_HEADER) {
		if (!c->peer_key || !c->addresses_known)
			c->peer_key = peer_key(c, w->peer_socket, client);
		x->context.peer_key = c->peer_key;
		x->context.peer_stamp = w->stamp;
		if (client)
			context_publish(&x->context, w->now_mono_ns);
		else
			resolve(&x->context, w->now_mono_ns);
	}
	if (which != AHEAD) {
		if (!client)
			context_enter(c, x);
		x->open = 1;
	}
	c->requests++;
	return 0;
}

/* Whether the response's head in the window says "Upgrade: h2c".  No other value of a 101 has such a word. */
__noinline int upgrades_to_http2(__u32 index)
{
	struct work *w = work_of(index);
	__u32 length;

	if (!w)
		return 0;
	length = w->window.length;
	for (__u32 i = 0; i < UPGRADE_SCAN && i + 5 <= length; i++) {
		const __u8 *at = w->window.bytes + (i & WINDOW_MASK);

		if ((at[0] == ' ' || at[0] == ':') && at[1] == 'h' && at[2] == '2' && at[3] == 'c' && at[4] == '\r')
			return 1;
	}
	return 0;
}

/* A response's head is complete. */
static __always_inline void response_head(struct connection *c, struct stream *s, struct work *w, __u64 now)
{
	__u64 bit = 1ULL << (c->responses & (PIPELINE_MAX - 1));
	__u32 status = s->status;

	s->body_bytes = 0;
	s->flags = 0;
	if (status < 200 && status != 101) {
		/* 1xx: the final response is still to come */
		s->phase = PHASE_START;
		s->status = 0;
		return;
	}
	if (w->head.flags & HEAD_EVENT_STREAM)
		s->flags |= REQUEST_STREAM;
	if (c->requests == c->responses) {
		/* answers a request that was sent before the connection was watched, or none at all */
		if (status != 408)
			count_loss(LOSS_UNPAIRED_RESPONSE);
		s->status = 0;
		s->phase = w->head.flags & HEAD_CHUNKED ? PHASE_CHUNK :
			   w->head.flags & HEAD_HAS_LENGTH && w->head.content_length ? PHASE_BODY : PHASE_START;
		zero_words(&s->chunk, sizeof(s->chunk));
		s->remaining = w->head.content_length;
		return;
	}
	if (status == 101 || (c->connect_requests & bit && status < 300)) {
		bool http2 = status == 101 && upgrades_to_http2(w->index);

		response_over(w, now, http2 ? REQUEST_UPGRADED | REQUEST_TO_HTTP2 : REQUEST_UPGRADED);
		c->protocol = http2 ? PROTOCOL_HTTP2 : PROTOCOL_OTHER;
		s->phase = PHASE_LOST;
		return;
	}
	if (status == 204 || status == 304 || c->head_requests & bit) {
		s->phase = PHASE_START;
	} else if (w->head.flags & HEAD_CHUNKED) {
		s->phase = PHASE_CHUNK;
		zero_words(&s->chunk, sizeof(s->chunk));
		return;
	} else if (w->head.flags & HEAD_HAS_LENGTH) {
		s->remaining = w->head.content_length;
		s->phase = s->remaining ? PHASE_BODY : PHASE_START;
		if (s->remaining)
			return;
	} else {
		s->phase = PHASE_CLOSE;
		if (lingers(c, s))
			response_so_far(w);
		return;
	}
	response_over(w, now, 0);
}

/* The last byte of a message has passed. */
static __always_inline void message_end(struct connection *c, struct stream *s, struct work *w, bool request, __u64 now)
{
	s->phase = PHASE_START;
	if (request) {
		struct exchange *x = &c->exchanges[CURRENT];

		/* unless the request is pipelined, or its response came first */
		if (x->open && x->sequence + 1 == c->requests) {
			x->end_mono_ns = now;
			x->body_bytes = s->body_bytes;
		}
	} else if (s->status) {
		response_over(w, now, 0);
	}
}

/* Bytes moved past the hooks: harmless inside a body whose length is known, else the framing is lost. */
SUBPROGRAM_1(http1_unseen, direction)
{
	struct stream *s;
	__u32 unseen;
	bool request;

	if (!c || !w)
		return 0;
	s = &c->streams[direction & 1];
	request = c->request_direction == direction;
	unseen = w->unseen;
	w->unseen = 0;
	if (request)
		c->exchanges[CURRENT].flags |= BYTES_UNSEEN;
	else
		s->flags |= BYTES_UNSEEN;
	if (s->phase == PHASE_CLOSE) {
		s->body_bytes += unseen;
	} else if ((s->phase == PHASE_BODY || s->phase == PHASE_DATA) && unseen <= s->remaining) {
		s->remaining -= unseen;
		if (s->phase == PHASE_BODY)
			s->body_bytes += unseen;
		if (s->remaining)
			return 0;
		if (s->phase == PHASE_DATA)
			s->phase = PHASE_CHUNK;
		else /* at an unknown time */
			message_end(c, s, w, request, w->before_mono_ns);
	} else if (s->phase != PHASE_LOST) {
		count_loss(LOSS_BYTES_UNSEEN);
		s->phase = PHASE_LOST;
		s->carry_length = 0;
	}
	return 0;
}

/* What is known of the oldest response when its connection ends, where its last bytes moved past the hooks. */
static __always_inline void last_unseen(struct connection *c, struct sock *sk, struct work *w)
{
	__u32 direction = (!c->request_direction) & 1;

	if (!sk || c->family == AF_UNIX || c->requests == c->responses)
		return;
	/* after a disconnection the numbers are those of another connection */
	if (!KERNEL_FIELD(sk, __sk_common.skc_dport))
		return;
#ifdef ONLOOKER_OLD_KERNEL
	w->untaken = 0;
#endif
	w->now_mono_ns = bpf_ktime_get_ns();
	w->before_mono_ns = c->streams[direction].last_mono_ns;
	w->source.length = 0;
	w->source.offset = 0;
	w->emit = EMIT_NONE;
	locate(c, sk, w, direction);
	if (w->unseen <= 1) /* the end of a stream takes a number too */
		return;
	http1_unseen(c, w, direction);
	if (w->emit)
		emit(c, w);
}

WORKPROGRAM(scan_part)
{
	if (!w)
		return 0;
	http1_scan(&w->head, &w->window, 32);
	return (w->window.position & ~INSIDE_LINE) < w->window.length && !(w->head.flags & HEAD_COMPLETE);
}

WORKPROGRAM(scan_window)
{
	if (!w)
		return 0;
	http1_scan_begin(&w->head, &w->window);
	for (int i = 0; i < 6; i++) {
		if (!scan_part(w))
			break;
		if (w->window.whole && w->window.found_length && http1_shortcut(&w->head, &w->window))
			break;
	}
	http1_scan_end(&w->head, &w->window);
	if (w->window.host | w->window.found_length | w->window.found_type | w->window.found_encoding |
	    w->window.found_traceparent)
		http1_fields(&w->head, &w->window);
	return 0;
}

WORKPROGRAM(scan_chunk)
{
	__u32 used = 0;
	int result;

	if (!w)
		return CHUNK_BROKEN;
	result = http1_chunk(&w->chunk, w->window.bytes, w->window.length, &used);
	w->chunk_used = used;
	return result;
}

WORKPROGRAM(classify_window)
{
	return w ? http1_classify(w->window.bytes, w->window.length) : VERDICT_NO;
}

/* source_seek, walked by the verifier once. */
WORKPROGRAM(seek_window)
{
	if (w)
		source_seek(&w->source);
	return 0;
}

/* Gives how many bytes stand behind the carried ones. */
WORKPROGRAM_2(read_window, carry, room)
{
	if (!w || carry > CARRY_SIZE || room > HEAD_WINDOW || !w->source.iov_count)
		return 0;
	if (w->source.iov_total > MAX_IOVECS)
		seek_window(w);
	return source_read(&w->source, w->window.bytes + at_most(carry, CARRY_SIZE), room);
}

/* One window of a message's head.  False: nothing more can be made of this transfer. */
static __always_inline bool step_head(struct connection *c, struct stream *s, struct work *w, __u32 direction,
				      bool request)
{
	__u32 carry = s->carry_length, n, length, which, was, used;
	bool cut;

	if (carry > CARRY_SIZE)
		return false;
	if (carry)
		bpf_probe_read_kernel(w->window.bytes, at_most(carry, CARRY_SIZE), s->carry);
	n = read_window(w, carry, HEAD_WINDOW);
	if (!n) {
		count_loss(LOSS_UNREADABLE);
		s->phase = PHASE_LOST;
		return false;
	}
	n &= WINDOW_MASK;
	length = carry + n;
	w->window.length = length;
	zero_words(&w->window.start_line, 16);

	if (s->phase == PHASE_START) {
		int verdict;

		if (!carry) {
			__u8 first = w->window.bytes[0];

			if (first == '\r' || first == '\n') { /* RFC 9112 section 2.2 */
				w->source.offset++;
				return true;
			}
			s->start_mono_ns = w->first_mono_ns;
		}
		verdict = http1_plain(load8(w->window.bytes, 0), length);
		if (!verdict)
			verdict = classify_window(w);
		if (verdict == VERDICT_MORE && length <= 16) {
			bpf_probe_read_kernel(s->carry, at_most(length, 16), w->window.bytes);
			s->carry_length = length;
			w->source.offset += n;
			return true; /* where the buffers are many there is more */
		}
		if (verdict != (request ? VERDICT_REQUEST : VERDICT_RESPONSE)) {
			count_loss(LOSS_FRAMING);
			s->phase = PHASE_LOST;
			s->carry_length = 0;
			return false;
		}
		s->phase = PHASE_HEAD;
		zero_words(&w->head, sizeof(w->head));
		/* `carry` bytes of the head came with earlier calls */
		w->head.length = carry;
		if (request) {
			struct stream *response = &c->streams[(!direction) & 1];

			if (response->phase == PHASE_LOST) {
				/* the responses went out of step: a new request is where to begin again */
				s->phase = PHASE_START;
				response->phase = PHASE_START;
				response->carry_length = 0;
				if (c->requests != c->responses) {
					c->responses = c->requests - 1;
					response_over(w, response->last_mono_ns, BYTES_UNSEEN);
					if (!response->status)
						w->emit = EMIT_DROP; /* counted when it was lost */
					return true;
				}
				s->phase = PHASE_HEAD;
			}
			begin_request(c, s, w->pid_tgid);
		}
	} else {
		w->head = s->head;
	}
	/* as begin_request chose */
	which = c->exchanges[AHEAD].flags & REQUEST_HALF && c->exchanges[AHEAD].sequence == c->requests ?
			AHEAD : CURRENT;
	was = w->head.flags;
	w->window.whole = 0;
	/* one request waits for its answer: this is that answer, and no second one behind it */
	if (!request && !carry && !w->source.offset && c->requests == c->responses + 1)
		w->window.whole = w->source.length;
	scan_window(w);

	used = n;
	cut = false;
	if (!(w->head.flags & (HEAD_COMPLETE | HEAD_SKIP_LINE))) {
		__u32 line = w->window.line_start, rest = length - line;
		bool more = n == HEAD_WINDOW && w->source.offset + n < w->source.length;

		if (line > carry && (more || w->window.position + 8 <= length)) {
			used = line - carry; /* the unfinished line is read again with what follows */
			rest = 0;
		} else if (more || rest > CARRY_SIZE) {
			/* a line too long to matter, but for its beginning */
			cut = !(w->head.flags & HEAD_LINE_DONE);
			w->head.flags |= HEAD_SKIP_LINE;
			rest = 0;
		} else {
			bpf_probe_read_kernel(s->carry, at_most(rest, CARRY_SIZE),
					      w->window.bytes + (line & WINDOW_MASK));
		}
		s->carry_length = rest;
	} else {
		s->carry_length = 0;
	}
	if ((cut || w->head.flags & HEAD_LINE_DONE) && !(was & (HEAD_LINE_DONE | HEAD_SKIP_LINE))) {
		if (request) {
			struct exchange *x = &c->exchanges[which & 1];

			keep_line(c, x, which, &w->window, cut ? length : w->window.start_line, cut);
			if (x->flags & TEXT_TRUNCATED && !carry)
				emit_line(c, x, &w->source);
		} else {
			__u64 code = load8(w->window.bytes, 9);
			__u32 status = ((code & 0xff) - '0') * 100 + ((code >> 8 & 0xff) - '0') * 10 +
				       (code >> 16 & 0xff) - '0';

			s->status = status >= 100 && status <= 999 ? status : 0;
		}
	}
	if (request && w->window.host_length)
		keep_host(c, &c->exchanges[which & 1], which, &w->window);

	if (w->head.flags & HEAD_COMPLETE) {
		used = w->window.position - carry;
		if (used > n)
			used = n;
		w->source.offset += used;
		w->head.length += used;
		if (request) {
			request_head(c, s, w, which);
		} else if (!s->status) {
			count_loss(LOSS_FRAMING);
			s->phase = PHASE_LOST;
		} else {
			response_head(c, s, w, w->now_mono_ns);
		}
		return s->phase != PHASE_LOST && c->protocol == PROTOCOL_HTTP1;
	}

	if (used > n)
		used = n;
	w->source.offset += used;
	w->head.length += used;
	if (w->head.length > HEAD_MAX) {
		count_loss(LOSS_HEAD_TOO_LONG);
		s->phase = PHASE_LOST;
		return false;
	}
	s->head = w->head;
	return true;
}

/* The lines between the chunks of a body. */
static __always_inline bool step_chunk(struct connection *c, struct stream *s, struct work *w, __u32 direction,
				       bool request)
{
	__u32 n = read_window(w, 0, CHUNK_WINDOW);
	int result;

	if (!n) {
		count_loss(LOSS_UNREADABLE);
		s->phase = PHASE_LOST;
		return false;
	}
	w->window.length = n;
	w->chunk = s->chunk;
	result = scan_chunk(w);
	s->chunk = w->chunk;
	w->source.offset += w->chunk_used & 63;
	if (result == CHUNK_DATA) {
		s->body_bytes += s->chunk.size;
		s->remaining = s->chunk.size + 2; /* the line end behind the data */
		s->phase = PHASE_DATA;
		zero_words(&s->chunk, sizeof(s->chunk));
	} else if (result == CHUNK_LAST) {
		message_end(c, s, w, request, w->now_mono_ns);
	} else if (result == CHUNK_BROKEN) {
		count_loss(LOSS_FRAMING);
		s->phase = PHASE_LOST;
		return false;
	}
	return true;
}

/* One piece of a message; 0 when the transfer is used up or cannot be followed. */
SUBPROGRAM_1(http1_step, direction)
{
	struct stream *s;
	bool request;
	__u32 left;
	__u8 phase;

	if (!c || !w)
		return 0;
	s = &c->streams[direction & 1];
	request = c->request_direction == direction;
	left = w->source.length - w->source.offset;
	phase = s->phase;
	if (!left || left > w->source.length)
		return false;
	if (phase <= PHASE_HEAD) {
		bool again = step_head(c, s, w, direction, request);

		left = w->source.length - w->source.offset;
		if (request || !again || s->phase != PHASE_BODY || w->emit || !left || left > w->source.length)
			return again;
		phase = PHASE_BODY; /* of a response, most often in the same transfer */
	}
	if (phase == PHASE_CHUNK)
		return step_chunk(c, s, w, direction, request);
	if (phase == PHASE_BODY || phase == PHASE_DATA) {
		__u64 take = s->remaining < left ? s->remaining : left;

		s->remaining -= take;
		w->source.offset += (__u32)take;
		if (phase == PHASE_BODY)
			s->body_bytes += take;
		if (s->remaining)
			return false;
		if (phase == PHASE_DATA)
			s->phase = PHASE_CHUNK;
		else
			message_end(c, s, w, request, w->now_mono_ns);
		return true;
	}
	if (phase == PHASE_CLOSE) {
		s->body_bytes += left;
		if (lingers(c, s))
			response_so_far(w);
	}
	if (phase == PHASE_LOST && request && !w->source.offset && c->requests == c->responses &&
	    read_window(w, 0, 32)) {
		w->window.length = left < 32 ? left : 32;
		if (classify_window(w) == VERDICT_REQUEST) {
			s->phase = PHASE_START;
			s->carry_length = 0;
			return true;
		}
	}
	return false;
}
