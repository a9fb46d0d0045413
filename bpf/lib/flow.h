/* Connections: two entries in `flows`, one for each direction, each found by one lookup of the packet's own tuple.
 * The entries point at each other (reverse of `to`), so whoever holds one can find, refresh or restore the other. */

#define SECOND 1000000000ULL
#define PORTS_TRIED                                                                                                    \
	32 /* at random: with 9 of 10 ports in use one connection in 30 fails, and is tried again by its client */

enum scratch_use { SCRATCH_FORWARD, SCRATCH_BACK, SCRATCH_QUESTION, SCRATCH_PACKET };

/* An entry in the making, all zero: a program's stack of 512 bytes has no room for it. One program at a time runs on a
 * processor, so nobody else uses it. */
static __always_inline struct flow *blank_flow(__u32 use)
{
	struct flow *f = scratch.lookup(&use);
	if (f)
		__builtin_memset(f, 0, sizeof(*f));
	return f;
}

static __always_inline __u64 flow_timeout(__u8 protocol, __u8 state)
{
	if (is_stream(protocol)) {
		if (state == FLOW_ESTABLISHED)
			return TIMEOUT_TCP_ESTABLISHED_S * SECOND;
		if (state == FLOW_HALF_CLOSED)
			return TIMEOUT_TCP_HALF_CLOSED_S * SECOND;
		return (state == FLOW_NEW ? TIMEOUT_TCP_NEW_S : TIMEOUT_TCP_CLOSING_S) * SECOND;
	}
	return (state == FLOW_NEW ? TIMEOUT_DATAGRAM_NEW_S : TIMEOUT_DATAGRAM_ESTABLISHED_S) * SECOND;
}

/* Nanoseconds since the last packet; never negative, though another CPU may have been here a tick later than `now`. */
static __always_inline __u64 idle_ns(const struct flow *f, __u64 now)
{
	__s64 idle = now - f->seen_ns;
	return idle > 0 ? idle : 0;
}

static __always_inline bool flow_over(const struct flow *f, __u8 protocol, __u64 now)
{
	__u64 idle = idle_ns(f, now);
	return idle > SECOND && idle > flow_timeout(protocol, f->state);
}

/* May a packet still use this entry? Not when it has timed out, and not when a client opens a new connection from
 * the same port after closing the last (RFC 9293 §3.6.1), be it that its backend is dead and never answered, or is gone:
 * that one chooses anew. */
static __always_inline bool flow_alive(const struct flow *f, const struct packet *p, __u64 now)
{
	if (flow_over(f, p->tuple.protocol, now))
		return false;
	bool ended = f->state == FLOW_CLOSING || (f->tcp_flags & TCP_FIN) || (f->flags & FLOW_GONE);
	return !(ended && !(f->flags & FLOW_REPLY) && asks_to_connect(p));
}

static __always_inline __u8 next_state(const struct flow *f, __u8 others_tcp_flags, const struct packet *p)
{
	if (is_stream(p->tuple.protocol)) {
		if ((p->tcp_flags & TCP_RST) || (f->tcp_flags & others_tcp_flags & TCP_FIN))
			return FLOW_CLOSING;
		if ((f->flags & FLOW_DIRECT) && (f->tcp_flags & TCP_FIN))
			return FLOW_HALF_CLOSED;
		/* Somebody goes on after a reset: it was forged or late, its sequence number wrong, and nobody heeded it. */
		if (f->state == FLOW_CLOSING)
			return FLOW_ESTABLISHED;
	}
	/* The first answer establishes; where none is seen, what a client sends after its question. */
	if (f->state == FLOW_NEW && ((f->flags & FLOW_REPLY) || ((f->flags & FLOW_DIRECT) && !asks_to_connect(p))))
		return FLOW_ESTABLISHED;
	return f->state;
}

/* The entry of the other direction, as it must be; used when the LRU evicted it. */
static __always_inline void mirror(struct flow *to, const struct flow *f, const struct tuple *key)
{
	reverse(&to->to, key);
	to->seen_ns = f->seen_ns;
	to->service = f->service;
	to->from = f->deliver;
	to->deliver = f->from;
	to->state = f->state;
	to->flags = f->flags ^ FLOW_REPLY;
	to->tcp_flags = 0;
	to->turn = f->turn;
	to->generation = f->generation;
	to->egress_rule = f->egress_rule;
	to->ingress_rule = f->ingress_rule;
}

/* The other direction's entry of a flow that `key` found, whose key is put into *other_key. NULL: not there. *taken: a
 * later connection has its place, which is not ours to change, or there is to be none. */
static __always_inline struct flow *opposite(const struct flow *f, const struct tuple *key, struct tuple *other_key,
					     bool *taken)
{
	struct tuple ours;
	reverse(other_key, &f->to);
	*taken = f->flags & FLOW_DIRECT;
	if (*taken)
		return NULL;
	reverse(&ours, key);
	struct flow *other = flows.lookup(other_key);
	*taken = other && !same_tuple(&other->to, &ours);
	return other;
}

/* Remove both directions. */
static __always_inline void forget(struct flow *f, const struct packet *p)
{
	struct tuple key = p->tuple, other_key;
	bool taken;
	struct flow *other = opposite(f, &key, &other_key, &taken);
	flush(f, other && !taken ? other : NULL, &key, f->state == FLOW_NEW);
	if (other && !taken)
		flows.delete(&other_key);
	flows.delete(&key);
}

/* Account a packet of a known flow. Nearly always two or three comparisons: the clock is coarse, TCP flags rare.
 * Otherwise both directions are refreshed together, so that traffic one way keeps the way back open.
 * Returns 0, or -DROP_BACKEND_GONE: the packet is to be refused, and there is no flow any more. A reset goes on its way:
 * it ends the connection as well as we would, and is never answered (RFC 9293 §3.10.7.1). */
static __always_inline int track(struct flow *f, const struct packet *p, __u64 now)
{
	__u8 flags = p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST);
	bool settled = f->state == FLOW_ESTABLISHED ||
		       (f->state == FLOW_NEW && !(f->flags & (FLOW_REPLY | FLOW_DIRECT)));
	if (__builtin_expect((f->flags & FLOW_GONE) && !(flags & TCP_RST), 0)) {
		forget(f, p);
		return -DROP_BACKEND_GONE;
	}
	count(f, p);
	if (settled && !flags && idle_ns(f, now) < SECOND)
		return 0;
	struct tuple other_key;
	bool taken;
	struct flow *other = opposite(f, &p->tuple, &other_key, &taken);
	f->seen_ns = now;
	f->tcp_flags |= flags;
	bool unanswered = f->state == FLOW_NEW;
	f->state = next_state(f, other && !taken ? other->tcp_flags : 0, p);
	flush(f, taken ? NULL : other, &p->tuple, unanswered && f->state != FLOW_NEW);
	if (!other && !taken) {
		struct flow *restored = blank_flow(SCRATCH_BACK);
		if (!restored)
			return 0;
		mirror(restored, f, &p->tuple);
		restored->turn--; /* an answer does not ask for its question (left_behind) */
		flows.insert(&other_key, restored);
	} else if (other && !taken) {
		other->state = f->state;
		other->seen_ns = now;
		other->generation = f->generation;
		other->egress_rule = f->egress_rule;
		other->ingress_rule = f->ingress_rule;
	}
	return 0;
}

/* Would the answers to this packet be taken for those of a connection that came to the same backend by way of a service? A
 * packet that is no service's need not be remembered, but for this: claim_reply finds it another source port. What a process
 * of this node asked is left out: its packets may come by again when they are translated already. */
static __always_inline bool shadowed(const struct packet *p, __u64 now)
{
	const __u8 translated = FLOW_NAT | FLOW_REPLY;
	struct flow *room = blank_flow(SCRATCH_BACK);
	if (!room)
		return false;
	reverse(&room->to, &p->tuple);
	struct flow *held = flows.lookup(&room->to);
	return held && (held->flags & (translated | FLOW_HOST)) == translated &&
	       !flow_over(held, p->tuple.protocol, now);
}

/* Claim the reply's key for this flow; a client may hold connections to a backend through two services, or directly
 * and through one, with one source port: the later one gets another source port. Returns 0 or -DROP_*. */
static __always_inline int claim_reply(const struct tuple *key, struct flow *forward, __u64 now)
{
	struct tuple reply_key;
	struct flow *back = blank_flow(SCRATCH_BACK);
	if (!back)
		return -DROP_FLOW_TABLE;
	mirror(back, forward, key);
	reverse(&reply_key, &forward->to);
	if (flows.insert(&reply_key, back) == 0)
		return 0;
	struct flow *held = flows.lookup(&reply_key);
	if (!held)
		return -DROP_FLOW_TABLE;
	if (held->state == FLOW_CLOSING || (held->flags & FLOW_GONE) || flow_over(held, key->protocol, now) ||
	    same_tuple(&held->to, &back->to)) {
		flows.update(&reply_key, back);
		return 0;
	}
	if (!has_ports(key->protocol))
		return -DROP_NO_SOURCE_PORT;
	forward->flags |= FLOW_NAT;
	back->flags |= FLOW_NAT;
#pragma clang loop unroll(disable)
	for (int tried = 0; tried < PORTS_TRIED; tried++) {
		forward->to.source_port = bpf_htons(32768 + (bpf_get_prandom_u32() & 0x7fff));
		reply_key.destination_port = forward->to.source_port;
		if (flows.insert(&reply_key, back) == 0)
			return 0;
	}
	return -DROP_NO_SOURCE_PORT;
}

/* Remember a new connection, both directions. Returns what this packet follows, `forward` itself or the entry of another
 * CPU that was first; NULL with *error set. */
static __always_inline struct flow *remember(struct packet *p, struct flow *forward, __u64 now, int *error)
{
	forward->seen_ns = now;
	forward->turn = p->turn;
	forward->tcp_flags = p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST);
	count(forward, p);
	*error = forward->flags & FLOW_DIRECT ? 0 : claim_reply(&p->tuple, forward, now);
	if (*error)
		return NULL;
	if (flows.insert(&p->tuple, forward) == 0)
		return forward;
	struct flow *f = flows.lookup(&p->tuple); /* another CPU was first with this connection: its choice holds */
	if (!f)
		*error = -DROP_FLOW_TABLE;
	return f;
}

/* Did the backend leave its service since the last packet? True when the flow is forgotten for that, and its client is to
 * choose anew; what was established is marked for its end instead. Late answers to datagrams still go their way. The
 * agent writes `departed` after the slots and before `turn`, and we read in the opposite order: whoever found the
 * backend in a slot is of an earlier turn. */
static __always_inline bool left_behind(struct flow *f, const struct packet *p)
{
	struct member *member = (void *)blank_flow(SCRATCH_BACK);
	f->turn = p->turn;
	if (!f->service || !member)
		return false;
	member->set = f->service;
	backend_of(&member->backend, f, &p->tuple);
	__u32 *how = departed.lookup(member);
	if (!how) {
		__builtin_memset(&member->backend, 0, sizeof(member->backend));
		how = departed.lookup(member);
	}
	if (!how)
		return false;
	if (is_stream(p->tuple.protocol) && f->state != FLOW_NEW) {
		if (*how == DEPARTED_GONE && f->state == FLOW_ESTABLISHED)
			f->flags |= FLOW_GONE;
		return false;
	}
	if ((f->flags & (FLOW_NAT | FLOW_REPLY)) != FLOW_NAT)
		return false;
	struct tuple *other_key = &((struct flow *)member)->to;
	reverse(other_key, &f->to);
	struct flow *other = flows.lookup(other_key);
	if (other && same_address(&other->to.destination, &p->tuple.source) &&
	    other->to.destination_port == p->tuple.source_port) {
		f->packets += other->packets;
		f->bytes += other->bytes;
		flows.delete(other_key);
	}
	return true;
}

/* Find the flow of a packet; one that is over is removed. */
static __always_inline struct flow *recall(struct packet *p, __u64 now)
{
	__u32 zero = 0, *current = turn.lookup(&zero);
	struct flow *f = flows.lookup(&p->tuple);
	p->turn = current ? *current : 0;
	if (f && ((__builtin_expect(f->turn != p->turn, 0) && left_behind(f, p)) || !flow_alive(f, p, now))) {
		flush(f, NULL, &p->tuple, f->state == FLOW_NEW && !(f->flags & FLOW_REPLY));
		flows.delete(&p->tuple);
		return NULL;
	}
	return f;
}

/* Later fragments carry no ports: the first one leaves them here. Nor do they say which protocol they are of, when
 * destination options come before it: then the first one leaves that too, under the options' number.
 * Returns 0 or -DROP_FRAGMENT_UNKNOWN. */
static __always_inline int follow_fragment(struct packet *p)
{
	struct fragment key = {
		.source = p->tuple.source,
		.destination = p->tuple.destination,
		.id = p->fragment_id,
		.protocol = p->tuple.protocol,
	};
	if (p->fragment == FRAGMENT_FIRST) {
		struct ports ports = { p->tuple.source_port, p->tuple.destination_port };
		fragments.update(&key, &ports);
		if (p->fragment_next == IPPROTO_DSTOPTS) {
			struct ports protocol = { p->tuple.protocol, 0 };
			key.protocol = IPPROTO_DSTOPTS;
			fragments.update(&key, &protocol);
		}
		return 0;
	}
	struct ports *ports = fragments.lookup(&key);
	if (ports && key.protocol == IPPROTO_DSTOPTS) {
		key.protocol = p->tuple.protocol = ports->source;
		ports = fragments.lookup(&key);
	}
	if (!ports)
		return -DROP_FRAGMENT_UNKNOWN;
	p->tuple.source_port = ports->source;
	p->tuple.destination_port = ports->destination;
	return 0;
}
