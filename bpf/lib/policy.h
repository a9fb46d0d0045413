/* Policies: may a pod of this node send what opens a connection, may another take it? Asked of a connection's question, once,
 * and again when something changed that its verdict could depend on. Whatever policies say of peers and ports was decided
 * where the tables are written; here are a few lookups, however many policies there are. */

/* A value that the verifier forgot: it would follow each one that it knows through the rest of the program. */
#define read_back(pointer) (*(volatile typeof(*(pointer)) *)(pointer))

/* A connection as policies see it, and what is found out about it; in `scratch`, for a stack has no room. The arrays are by
 * enum direction, that is by whose policy is asked: INGRESS the server's, EGRESS the client's. */
struct question {
	struct block ends
		[2]; /* client before anybody stood in for it, server after DNAT: of one address, keys of all tables */
	__be16 port; /* server's */
	__u8 protocol;
	__u8 verdicts[2]; /* enum verdict */
	bool told[2];	  /* what decided counts and is reported */
	__s8 error;	  /* 0 or -DROP_* */
	__u64 ids[2];	  /* what decided */
	__u64 groups[2];  /* who asks; 0: nobody */
	union {
		struct rule_key key;
		struct port_range range;
	};
	struct rule rule; /* what was found */
};

_Static_assert(sizeof(struct question) <= sizeof(struct flow), "an entry of scratch has room for a question");
_Static_assert(sizeof(struct packet) <= sizeof(struct flow), "and for a packet");

/* Changes whenever the verdict of a flow's pods may have changed: the sum of two counters that only grow. */
static __always_inline __u32 generation_of(const struct flow *f)
{
	__u32 from = f->from.ifindex % GENERATIONS, deliver = f->deliver.ifindex % GENERATIONS;
	__u32 *first = generations.lookup(&from), *second = generations.lookup(&deliver);
	return (first ? *first : 0) + (second ? *second : 0);
}

/* Ask about the connection whose entry `key` found. */
static __always_inline void put_question(struct question *q, const struct flow *f, const struct tuple *key)
{
	bool back = f->flags & FLOW_REPLY;
	q->ends[back ? DIRECTION_INGRESS : DIRECTION_EGRESS].address = key->source;
	q->ends[back ? DIRECTION_EGRESS : DIRECTION_INGRESS].address = f->to.destination;
	q->ends[0].prefix_length = q->ends[1].prefix_length = 8 * sizeof(struct address);
	q->port = back ? key->source_port : f->to.destination_port;
	q->protocol = key->protocol;
}

/* The generation of all pods, before they are looked up; odd: a group may be changing this very moment. */
static __always_inline __u32 settled_generation(void)
{
	__u32 all = GENERATION_OF_ALL;
	__u32 *generation = generations.lookup(&all);
	return generation ? *generation : 1;
}

/* The group that asks about what a pod does; 0: nobody does, or it is another plugin's to judge. */
static __always_inline __u64 group_of(const struct pod *pod)
{
	return pod && !pod->wire.segment ? pod->group : 0;
}

/* Keep what was found on the way, in the draft of a flow: its ends' groups, and since when they are known. */
static __always_inline void keep_groups(struct packet *p, struct flow *draft, __u32 settled, __u64 client, __u64 server)
{
	draft->generation = settled;
	draft->egress_rule = client;
	draft->ingress_rule = server;
	p->grouped = true;
}

/* Look up the groups of a connection's two ends. Returns false when there are none. */
static __always_inline bool look_up_groups(struct question *q, const struct flow *f, const struct tuple *key)
{
	__u64 sender = group_of(pods.lookup(&key->source));
	__u64 receiver = group_of(pods.lookup(&f->to.destination));
	bool back = f->flags & FLOW_REPLY;
	q->groups[DIRECTION_EGRESS] = back ? receiver : sender;
	q->groups[DIRECTION_INGRESS] = back ? sender : receiver;
	return sender | receiver;
}

/* The same, after the generation was read. Those that a flow's draft has are good when none changed since they were looked
 * up: what changes later raises the generation of its pods again. That there are none is believed when nothing changed
 * between the one lookup and the other. */
static __always_inline bool find_groups(struct question *q, const struct packet *p, const struct flow *f,
					const struct tuple *key, __u32 generation)
{
	if (p->grouped && !(f->generation & 1) && f->generation == settled_generation()) {
		q->groups[DIRECTION_EGRESS] = f->egress_rule;
		q->groups[DIRECTION_INGRESS] = f->ingress_rule;
		return f->egress_rule | f->ingress_rule;
	}
	return look_up_groups(q, f, key) || (generation_of(f) != generation && look_up_groups(q, f, key));
}

/* What a peer is to the policies of this node; 0: nobody in particular. */
static __always_inline __u32 class_of(struct block *peer)
{
	__u32 *class = peers.lookup(&peer->address);
	if (!class)
		class = peer_blocks.lookup(peer);
	return class ? *class : 0;
}

/* As many ones as there are bits below the highest one. */
static __always_inline __u32 below_highest_bit(__u32 bits)
{
	bits |= bits >> 1;
	bits |= bits >> 2;
	bits |= bits >> 4;
	bits |= bits >> 8;
	bits |= bits >> 16;
	return bits >> 1;
}

/* Take the rule of one port where some have their own. */
static __always_inline void narrow(struct question *q)
{
	if (!q->rule.ports || !has_ports(q->protocol))
		return;
	__builtin_memset(&q->range, 0, sizeof(q->range));
	q->range.ports = q->rule.ports;
	q->range.protocol = q->protocol;
#pragma clang loop unroll(disable)
	for (int i = 0; i <= 16; i++) { /* longest first; no branch that goes on, or the verifier walks 2^17 ways */
		__u32 lengths = read_back(&q->rule.lengths);
		if (!lengths)
			break;
		__u32 below = below_highest_bit(lengths);
		__u32 length = __builtin_popcount(below);
		q->rule.lengths = lengths & below;
		q->range.length = length;
		q->range.port = q->port & bpf_htons((0xffff0000 >> length) & 0xffff);
		struct rule *found = rule_ports.lookup(&q->range);
		if (found) {
			q->rule = *found;
			break;
		}
	}
}

/* Find what decides for a pod of a group about the other end. False: its group has no rules. */
static __always_inline bool find_rule(__u64 group, int direction, struct question *q)
{
	__builtin_memset(&q->key, 0, sizeof(q->key));
	q->key.group = group;
	q->key.direction = direction;
	q->key.peers = class_of(&q->ends[!direction]);
	struct rule *rule = rules.lookup(&q->key);
	if (!rule) {
		q->key.peers = 0;
		rule = rules.lookup(&q->key);
		if (!rule)
			return false;
	}
	q->rule = *rule;
	narrow(q);
	return true;
}

/* One pod's side. `before`: what let it pass until now, when the connection is known. Returns 0 or -DROP_*. */
static __always_inline int ask(struct question *q, int direction, bool fresh, __u64 before)
{
	if (!q->groups[direction])
		return 0;
	if (!find_rule(q->groups[direction], direction, q))
		return -DROP_NO_RULES;
	__u64 id = read_back(&q->rule.id);
	__u8 verdict = read_back(&q->rule.verdict);
	q->ids[direction] = id;
	q->verdicts[direction] = verdict;
	if (verdict != VERDICT_DENY) {
		/* What is audited counts in known connections too, once: enforced, it would cut them. */
		q->told[direction] = fresh || (verdict == VERDICT_AUDIT && id != before);
		return 0;
	}
	if (!fresh && (q->rule.flags & RULE_GRACEFUL)) {
		q->ids[direction] = before;
		return 0;
	}
	q->told[direction] = true;
	return direction == DIRECTION_EGRESS ? -DROP_POLICY_EGRESS : -DROP_POLICY_INGRESS;
}

static __always_inline void hit(__u64 rule, __u8 verdict)
{
	struct hits none = {};
	struct hits *hits = rule_hits.lookup(&rule);
	if (!hits) {
		rule_hits.insert(&rule, &none);
		hits = rule_hits.lookup(&rule);
	}
	if (!hits)
		return;
	if (verdict == VERDICT_DENY)
		hits->denied++;
	else if (verdict == VERDICT_ALLOW)
		hits->allowed++;
	else
		hits->audited++;
}

/* Count who decided, and report what only is audited. When one side denies, what the other one said is of no account. */
static __always_inline void tell(struct __sk_buff *skb, __u32 hook, const struct tuple *tuple, struct question *q,
				 bool denied)
{
#pragma clang loop unroll(disable)
	for (int i = DIRECTION_INGRESS; i <= DIRECTION_EGRESS; i++) {
		__u64 rule = q->ids[i];
		__u8 verdict = q->verdicts[i];
		if (!rule || !q->told[i] || denied != (verdict == VERDICT_DENY))
			continue;
		hit(rule, verdict);
		name_rule(skb, rule);
		if (verdict == VERDICT_AUDIT)
			note(skb, hook, DROP_AUDITED, tuple);
	}
}

/* Ask both sides. The tables are read one after the other, and the agent may write in between (a virtual processor can
 * stand still for milliseconds): it raises the generation between writes of which nobody may see one without the other, so
 * whoever finds it raised asks again. Twice is enough: the second time it is a packet in a thousand of those. */
static __always_inline void ask_both(struct question *q, const struct flow *f, bool fresh, __u32 generation)
{
#pragma clang loop unroll(disable)
	for (int turn = 0; turn < 2; turn++) {
		__builtin_memset(q->told, 0, sizeof(q->told));
		__builtin_memset(q->ids, 0, sizeof(q->ids));
#pragma clang loop unroll(disable)
		for (int i = DIRECTION_EGRESS; i >= DIRECTION_INGRESS; i--) {
			if (turn)
				q->groups[i] = group_of(pods.lookup(&q->ends[i].address));
			q->error = ask(q, i, fresh, i == DIRECTION_EGRESS ? f->egress_rule : f->ingress_rule);
			if (read_back(&q->error))
				break;
		}
		__u32 now = generation_of(f);
		if (__builtin_expect(now == generation, 1))
			break;
		generation = now;
	}
}

/* May the connection be? The generation was read before: what changes while we look makes the next packet ask again.
 * Returns 0 or -DROP_*. */
static __always_inline int judge(struct __sk_buff *skb, __u32 hook, const struct tuple *tuple, struct question *q,
				 struct flow *f, bool fresh, __u32 generation)
{
	ask_both(q, f, fresh, generation);
	name_rule(skb, 0);
	tell(skb, hook, tuple, q, read_back(&q->error));
	if (!read_back(&q->error)) {
		f->egress_rule = q->ids[DIRECTION_EGRESS];
		f->ingress_rule = q->ids[DIRECTION_INGRESS];
	}
	return read_back(&q->error);
}

/* May an error about a flow pass? What provoked it passed a moment ago and was judged, in both entries. When something
 * changed since, the next packet is judged, and provokes the next error. */
static __always_inline int consent_to_error(const struct flow *f)
{
	bool judged = (f->flags & (FLOW_HOST | FLOW_OWN)) || f->generation == generation_of(f);
	return judged ? 0 : -DROP_FLOW_UNKNOWN;
}

/* Let the verifier forget what it found out about a packet: it would follow every kind of packet that it knows through all
 * that comes now. */
static __always_inline void unlearn(struct packet *p)
{
	__u32 use = SCRATCH_PACKET;
	struct packet *copy = (void *)scratch.lookup(&use);
	if (!copy)
		return;
	*copy = *p;
	asm volatile("" ::: "memory");
	*p = *copy;
}

/* Before a packet goes along a flow, whose key this is, or opens it (`fresh`): 0, or -DROP_* when policies are against it.
 * What this node asks itself passes always; a flow whose backend is gone is refused elsewhere. */
static __always_inline int consent(struct __sk_buff *skb, __u32 hook, struct packet *p, const struct tuple *key,
				   struct flow *f, bool fresh)
{
	__u32 generation = generation_of(f), use = SCRATCH_QUESTION;
	struct question *q;
	if (!fresh && __builtin_expect(f->generation == generation, 1))
		return 0;
	if (f->flags & FLOW_GONE)
		return 0;
	if (!(f->flags & (FLOW_HOST | FLOW_OWN))) {
		q = (void *)scratch.lookup(&use);
		if (!q)
			return -DROP_NO_RULES; /* never */
		if (find_groups(q, p, f, key, generation)) {
			unlearn(p);
			put_question(q, f, key);
			int error = judge(skb, hook, &p->tuple, q, f, fresh, generation);
			if (error)
				return error;
		} else {
			name_rule(skb, 0);
			f->egress_rule = 0;
			f->ingress_rule = 0;
		}
	}
	f->generation = generation;
	if (!fresh)
		f->seen_ns -= SECOND; /* due for a refresh, which tells the other direction */
	return 0;
}
