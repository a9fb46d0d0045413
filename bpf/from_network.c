/* tc ingress of the uplink: what comes in for pods of this node and for services; everything else is the host's,
 * untouched. */

/* Is it the answer to a process of this node, which another hook translated and put in here (deliver_to_host)? */
static __always_inline bool answers_process(const struct packet *p)
{
	struct flow *room = blank_flow(SCRATCH_BACK);
	if (!room)
		return false;
	reverse(&room->to, &p->tuple);
	struct flow *f = flows.lookup(&room->to);
	return f && (f->flags & FLOW_HOST);
}

/* What no service translates, and is for no pod that we serve, goes by unremembered, unless its answers would be mistaken.
 */
static __always_inline bool passes(const struct packet *p, const struct pod *pod, __u64 now)
{
	return !(pod && !pod->wire.segment) && !shadowed(p, now);
}

/* A service's backend: a pod here hears the client itself, and so does a process of this node; for one elsewhere the node
 * stands in, unless that answers directly (lib/direct.h). A pod on another plugin's wire gets the packet from that plugin, and its answers are translated when they
 * leave the node (to_network_beside): the stack in between, with its filters and its connection tracking, sees both
 * directions. */
static __always_inline int lead_on(struct __sk_buff *skb, const struct packet *p, struct flow *f, __u64 now)
{
	struct pod *pod = pod_of(&f->to.destination);
	bool direct = f->flags & FLOW_DIRECT;
	if (!pod && !(marks_of(&f->to.destination) & MARK_OWN))
		return direct ? 0 : stand_in(skb, p, f, now);
	f->flags &= ~FLOW_DIRECT;
	if (pod) {
		f->ingress_rule = group_of(pod);
		f->deliver = pod->wire;
		if (pod->wire.segment)
			f->flags |= FLOW_BESIDE;
	}
	return 0;
}

/* The first packet of a connection. Not remembered yet. `way`: what another node chose. NULL with *error 0: the host's
 * own, or another plugin's. */
static __always_inline struct flow *open_from_network(struct __sk_buff *skb, struct packet *p, const struct member *way,
						      __u64 now, int *error)
{
	struct flow *f = blank_flow(SCRATCH_FORWARD);
	__u32 settled = settled_generation();
	struct pod *pod = pod_of(&p->tuple.destination);
	*error = 0;
	if (!f)
		return NULL;
	if ((!pod || pod->wire.segment) && !begins(p))
		return NULL;
	f->to = p->tuple;
	if (pod) {
		f->deliver = pod->wire;
		f->flags = pod->wire.segment ? FLOW_BESIDE : 0;
	} else {
		if (way->set)
			take_way(f, way);
		else
			*error = choose_backend(f, HOOK_FROM_NETWORK);
	}
	if (!*error && (f->flags & FLOW_NAT ? answers_process(p) : passes(p, pod, now)))
		return NULL;
	if (!*error && (pod_of(&p->tuple.source) || (!pod && (marks_of(&p->tuple.source) & MARK_OWN))))
		*error = -DROP_SPOOFED_ADDRESS;
	f->ingress_rule = group_of(pod);
	if (!*error && !pod && (f->flags & FLOW_NAT))
		*error = lead_on(skb, p, f, now);
	keep_groups(p, f, settled, 0, f->ingress_rule); /* the client is no pod */
	return *error ? NULL : f;
}

/* Where a packet of a flow goes that is for no process of this node; *mtu is the path's for -DROP_TOO_BIG. Returns 0 or
 * -DROP_*. */
static __always_inline int choose_hop(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
				      const struct tuple *to, struct hop *hop, __u32 *mtu)
{
	if (f->flags & FLOW_BESIDE)
		return 0;
	if (f->deliver.ifindex) {
		hop->outcome = OUTCOME_POD;
		hop->ifindex = f->deliver.ifindex;
		__builtin_memcpy(hop->destination, f->deliver.mac, 6);
	} else {
		*mtu = route(skb, p, to, skb->ingress_ifindex, 0, hop);
		if (*mtu)
			return -DROP_TOO_BIG;
	}
	/* Ends here. Where only we know where it was going, only we can say so. */
	return p->ttl <= 1 && hop->outcome != OUTCOME_STACK ? -DROP_TIME_EXCEEDED : 0;
}

/* What can't be read, or is in a second header for no reason that we know: the host's stack checks its own packets, and
 * knows protocols that pods do not have. */
static __always_inline int unreadable(struct __sk_buff *skb, const struct tuple *tuple, int error)
{
	return ours(&tuple->destination) ? drop(skb, HOOK_FROM_NETWORK, error, tuple) : pass(skb, HOOK_FROM_NETWORK);
}

/* An error about an answer that went past us goes on as what it is about does. No error is sent about it. */
static __always_inline int direct_error(struct __sk_buff *skb, const struct packet *p, const struct flow *f)
{
	struct hop hop = {};
	__u32 mtu = 0;
	struct tuple *outer = outer_of(p, f);
	int error = route_wrapped(skb, p, outer, &hop, &mtu);
	if (!error && p->ttl <= 1)
		error = -DROP_TIME_EXCEEDED;
	if (error)
		return drop(skb, HOOK_FROM_NETWORK, error, &p->tuple);
	return leave_wrapped(skb, p, outer, &hop);
}

/* `outer`: the tuple of a second header of `shell` bytes before it. */
static __always_inline int network_error(struct __sk_buff *skb, struct packet *p, __u32 shell,
					 const struct tuple *outer)
{
	struct quote q = {};
	struct hop hop = {};
	struct pod *pod = pod_of(&p->tuple.destination);
	int error = 0;
	__u32 mtu = 0;
	if (!outer && pod && pod->wire.segment)
		return pass(skb, HOOK_FROM_NETWORK);
	struct flow *f = find_error(skb, p, &q, &error);
	if (outer) {
		if (!f || !leads_here(f))
			return unreadable(skb, outer, -DROP_UNSUPPORTED_PROTOCOL);
		if (unwrap(skb, p, shell))
			return drop(skb, HOOK_FROM_NETWORK, -DROP_REWRITE, &p->tuple);
		q.l3 -= shell;
		q.l4 -= shell;
	}
	if (f && (f->flags & FLOW_DIRECT))
		return direct_error(skb, p, f);
	if (f && (f->flags & FLOW_BESIDE) && (f->flags & FLOW_REPLY)) /* translated at its client's wire */
		return pass(skb, HOOK_FROM_NETWORK);
	if (f) /* not about a connection whose far end is here */
		error = f->from.ifindex ? -DROP_SPOOFED_ADDRESS : consent_to_error(f);
	if (f && !error)
		error = translate_error(skb, p, &q, f);
	if (!f || error)
		return pod ? drop(skb, HOOK_FROM_NETWORK, error, &p->tuple) : pass(skb, HOOK_FROM_NETWORK);
	if (f->flags & FLOW_HOST)
		return deliver_to_host(skb, p, HOOK_FROM_NETWORK, &p->tuple, false, &f->deliver);
	if (choose_hop(skb, p, f, &p->tuple, &hop, &mtu)) /* no error is sent about an error */
		__builtin_memset(&hop, 0, sizeof(hop));
	return leave(skb, p, HOOK_FROM_NETWORK, &p->tuple, false, &hop);
}

/* A packet of a connection: who it is for, and the way there. */
static __always_inline int follow(struct __sk_buff *skb, const struct packet *p, const struct flow *f, int error)
{
	struct hop hop = {};
	struct tuple *outer = NULL;
	__u32 mtu = 0;
	if (!error && !f) /* never, but the verifier can't know */
		error = -DROP_FLOW_TABLE;
	if (!error && (f->flags & FLOW_HOST))
		return deliver_to_host(skb, p, HOOK_FROM_NETWORK, &f->to, f->flags & FLOW_NAT, &f->deliver);
	/* Ends here, and is for whom it says: the stack tells its sender, of the packet as that knows it. */
	if (!error && p->ttl <= 1 && same_address(&f->to.destination, &p->tuple.destination) &&
	    f->to.destination_port == p->tuple.destination_port)
		return pass(skb, HOOK_FROM_NETWORK);
	if (!error && (f->flags & FLOW_DIRECT)) {
		outer = outer_of(p, f);
		error = p->ttl <= 1 ? -DROP_TIME_EXCEEDED : route_wrapped(skb, p, outer, &hop, &mtu);
	} else if (!error) {
		error = choose_hop(skb, p, f, &f->to, &hop, &mtu);
	}
	if (refused(error))
		return answer_error(skb, p, HOOK_FROM_NETWORK, error, mtu);
	if (error)
		return drop(skb, HOOK_FROM_NETWORK, error, &p->tuple);
	if (outer)
		return leave_wrapped(skb, p, outer, &hop);
	return leave(skb, p, HOOK_FROM_NETWORK, &f->to, f->flags & FLOW_NAT, &hop);
}

/* Parse a packet, or the one inside when another node put a second header around it for a backend here: *outer is that
 * header's tuple then, *shell its length. */
static __always_inline int parse_whole(struct __sk_buff *skb, struct packet *p, struct member *way, __u32 *shell,
				       struct tuple **outer)
{
	int error = 0;
#pragma clang loop unroll(disable)
	for (int depth = 0; depth < 2; depth++) {
		error = parse_at(skb, p, ETHERNET_LENGTH + *shell);
		if (error != -DROP_UNSUPPORTED_PROTOCOL || depth || !is_wrapped(skb, p, way, shell))
			break;
		struct flow *room = blank_flow(
			SCRATCH_QUESTION); /* recall() does not use it, and nothing is judged yet */
		if (!room)
			return -DROP_FLOW_TABLE;
		room->to = p->tuple;
		*outer = &room->to;
		__builtin_memset(p, 0, sizeof(*p));
	}
	return error;
}

int from_network(struct __sk_buff *skb)
{
	struct packet p = {};
	struct member way = {};
	struct tuple *outer = NULL;
	__u32 shell = 0;
	/* To another host's MAC, heard because the device is promiscuous: the stack drops it. */
	if (skb->pkt_type != PACKET_HOST)
		return pass(skb, HOOK_FROM_NETWORK);
	int error = parse_whole(skb, &p, &way, &shell, &outer);

	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (outer && (error || p.icmp == ICMP_KIND_NEIGHBOUR || nobody(&p)))
		return unreadable(skb, outer, -DROP_UNSUPPORTED_PROTOCOL);
	if (error)
		return unreadable(skb, &p.tuple, error);
	if (p.icmp == ICMP_KIND_NEIGHBOUR)
		return pass(skb, HOOK_FROM_NETWORK);
	if (nobody(&p))
		return unreadable(skb, &p.tuple, -DROP_SPOOFED_ADDRESS);
	if (p.icmp == ICMP_KIND_ERROR)
		return network_error(skb, &p, shell, outer);

	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *f = recall(&p, now);
	if (outer) {
		if (f ? !leads_here(f) : !is_welcome(&p, &way))
			return unreadable(skb, outer, -DROP_UNSUPPORTED_PROTOCOL);
		error = unwrap(skb, &p, shell);
	} else if (f && !still_direct(&p, f)) {
		flows.delete(&p.tuple);
		f = NULL;
	}
	bool fresh = !f;
	if (fresh && !error) {
		f = open_from_network(skb, &p, &way, now, &error);
		if (!f && !error)
			return pass(skb, HOOK_FROM_NETWORK);
	} else if (error) {
		/* it could not be taken out */
	} else if ((f->flags & FLOW_BESIDE) && ((f->flags & FLOW_REPLY) || f->from.ifindex)) {
		return pass(skb, HOOK_FROM_NETWORK); /* translated at its client's wire */
	} else if (f->from.ifindex) {		     /* a pod of this node as source, from outside */
		error = -DROP_SPOOFED_ADDRESS;
	}
	if (f && !error)
		error = consent(skb, HOOK_FROM_NETWORK, &p, &p.tuple, f, fresh);
	if (f && !error) {
		if (fresh)
			f = remember(&p, f, now, &error);
		else
			error = track(f, &p, now);
	}
	return follow(skb, &p, f, error);
}
