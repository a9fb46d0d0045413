/* tc ingress of the uplink: what comes in for pods of this node and for services; everything else is the host's,
 * untouched. */

static __always_inline struct pod *pod_of(const struct address *a)
{
	struct address address = *a;
	return pods.lookup(&address);
}

/* Sources that no host has: loopback, multicast, broadcast, 0.0.0.0/8, ::/96. The stack drops them too. */
static __always_inline bool nobody(const struct packet *p)
{
	const struct address *a = &p->tuple.source;
	__u8 first = p->ipv6 ? a->word[0] & 0xff : a->word[3] & 0xff;
	if (p->ipv6)
		return first == 0xff || !(a->word[0] | a->word[1] | a->word[2]);
	return first == 0 || first == 127 || (first & 0xf0) == 224 || a->word[3] == 0xffffffff;
}

/* The pod of a wire that was made for us; what is for another plugin's goes that plugin's way, through the stack. */
static __always_inline struct pod *ours(const struct address *a)
{
	struct pod *pod = pod_of(a);
	return pod && !pod->wire.segment ? pod : NULL;
}

/* May this packet open a connection? The middle of a TCP connection that we don't know is the stack's to reset. */
static __always_inline bool begins(const struct packet *p)
{
	return p->tuple.protocol != IPPROTO_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Is it the answer to a process of this node, which another hook translated and put in here (deliver_to_host)? */
static __always_inline bool answers_process(const struct packet *p)
{
	struct tuple question;
	reverse(&question, &p->tuple);
	struct flow *f = flows.lookup(&question);
	return f && (f->flags & FLOW_HOST);
}

/* A service's backend: a pod here hears the client itself, and so does a process of this node; for one elsewhere the node
 * stands in. A pod on another plugin's wire gets the packet from that plugin, and its answers are translated when they
 * leave the node (to_network_beside): the stack in between, with its filters and its connection tracking, sees both
 * directions. */
static __always_inline int lead_on(struct __sk_buff *skb, const struct packet *p, struct flow *f, __u64 now)
{
	struct pod *pod = pod_of(&f->to.destination);
	if (pod) {
		f->deliver = pod->wire;
		if (pod->wire.segment)
			f->flags |= FLOW_BESIDE;
		return 0;
	}
	return marks_of(&f->to.destination) & MARK_OWN ? 0 : stand_in(skb, p, f, now);
}

/* The first packet of a connection. NULL with *error 0: the host's own. */
static __always_inline struct flow *open_from_network(struct __sk_buff *skb, struct packet *p, __u64 now, int *error)
{
	struct flow *f = blank_flow(SCRATCH_FORWARD);
	struct pod *pod = pod_of(&p->tuple.destination);
	*error = 0;
	if (!f)
		return NULL;
	if (pod ? pod->wire.segment != 0 : !begins(p))
		return NULL;
	f->to = p->tuple;
	if (pod) {
		f->deliver = pod->wire;
	} else {
		*error = choose_backend(f, HOOK_FROM_NETWORK);
		if (!*error && (!(f->flags & FLOW_NAT) || answers_process(p)))
			return NULL;
	}
	if (!*error && (pod_of(&p->tuple.source) || (!pod && (marks_of(&p->tuple.source) & MARK_OWN))))
		*error = -DROP_SPOOFED_ADDRESS;
	if (!*error && !pod)
		*error = lead_on(skb, p, f, now);
	return *error ? NULL : remember(p, f, now, error);
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
		*mtu = route(skb, p, to, skb->ingress_ifindex, hop);
		if (*mtu)
			return -DROP_TOO_BIG;
	}
	/* Ends here. Where only we know where it was going, only we can say so. */
	return p->ttl <= 1 && hop->outcome != OUTCOME_STACK ? -DROP_TIME_EXCEEDED : 0;
}

static __always_inline int network_error(struct __sk_buff *skb, struct packet *p)
{
	struct quote q = {};
	struct hop hop = {};
	struct pod *pod = pod_of(&p->tuple.destination);
	int error = 0;
	__u32 mtu = 0;
	if (pod && pod->wire.segment)
		return pass(skb, HOOK_FROM_NETWORK);
	struct flow *f = find_error(skb, p, &q, &error);
	if (f && (f->flags & FLOW_BESIDE) && (f->flags & FLOW_REPLY)) /* translated at its client's wire */
		return pass(skb, HOOK_FROM_NETWORK);
	if (f) /* not about a connection whose far end is here */
		error = f->from.ifindex ? -DROP_SPOOFED_ADDRESS : translate_error(skb, p, &q, f);
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
	__u32 mtu = 0;
	if (!error && !f) /* never, but the verifier can't know */
		error = -DROP_FLOW_TABLE;
	if (!error && (f->flags & FLOW_HOST))
		return deliver_to_host(skb, p, HOOK_FROM_NETWORK, &f->to, f->flags & FLOW_NAT, &f->deliver);
	/* Ends here, and is for whom it says: the stack tells its sender, of the packet as that knows it. */
	if (!error && p->ttl <= 1 && same_address(&f->to.destination, &p->tuple.destination) &&
	    f->to.destination_port == p->tuple.destination_port)
		return pass(skb, HOOK_FROM_NETWORK);
	if (!error)
		error = choose_hop(skb, p, f, &f->to, &hop, &mtu);
	if (refused(error))
		return answer_error(skb, p, HOOK_FROM_NETWORK, error, mtu);
	if (error)
		return drop(skb, HOOK_FROM_NETWORK, error, &p->tuple);
	return leave(skb, p, HOOK_FROM_NETWORK, &f->to, f->flags & FLOW_NAT, &hop);
}

int from_network(struct __sk_buff *skb)
{
	struct packet p = {};
	/* To another host's MAC, heard because the device is promiscuous: the stack drops it. */
	if (skb->pkt_type != PACKET_HOST)
		return pass(skb, HOOK_FROM_NETWORK);
	int error = parse(skb, &p);

	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error) /* the host's stack checks its own packets, and knows protocols that pods do not have */
		return ours(&p.tuple.destination) ? drop(skb, HOOK_FROM_NETWORK, error, &p.tuple) :
						    pass(skb, HOOK_FROM_NETWORK);
	if (p.icmp == ICMP_KIND_NEIGHBOUR)
		return pass(skb, HOOK_FROM_NETWORK);
	if (nobody(&p))
		return ours(&p.tuple.destination) ? drop(skb, HOOK_FROM_NETWORK, -DROP_SPOOFED_ADDRESS, &p.tuple) :
						    pass(skb, HOOK_FROM_NETWORK);
	if (p.icmp == ICMP_KIND_ERROR)
		return network_error(skb, &p);

	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *f = recall(&p, now);
	if (!f) {
		f = open_from_network(skb, &p, now, &error);
		if (!f && !error)
			return pass(skb, HOOK_FROM_NETWORK);
	} else if ((f->flags & FLOW_BESIDE) && ((f->flags & FLOW_REPLY) || f->from.ifindex)) {
		return pass(skb, HOOK_FROM_NETWORK); /* translated at its client's wire */
	} else if (f->from.ifindex) {		     /* a pod of this node as source, from outside */
		error = -DROP_SPOOFED_ADDRESS;
	} else {
		error = track(f, &p, now);
	}
	return follow(skb, &p, f, error);
}
