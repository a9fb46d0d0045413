/* tc ingress of the uplink: what comes in for pods of this node; everything else is the host's, untouched. */

static __always_inline struct pod *pod_of(const struct address *a)
{
	struct address address = *a;
	return pods.lookup(&address);
}

/* Sources that no host has: loopback, multicast, broadcast, 0.0.0.0/8, ::/96. The stack drops them too. The node's own
 * addresses are not known here. */
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

static __always_inline int network_error(struct __sk_buff *skb, struct packet *p)
{
	struct quote q = {};
	struct pod *pod = pod_of(&p->tuple.destination);
	int error = 0;
	if (pod && pod->wire.segment)
		return pass(skb, HOOK_FROM_NETWORK);
	struct flow *f = find_error(skb, p, &q, &error);
	if (f) /* not about a connection whose far end is here */
		error = f->from.ifindex ? -DROP_SPOOFED_ADDRESS : translate_error(skb, p, &q, f);
	if (!f || error)
		return pod ? drop(skb, HOOK_FROM_NETWORK, error, &p->tuple) : pass(skb, HOOK_FROM_NETWORK);
	return deliver(skb, p, HOOK_FROM_NETWORK, &p->tuple, false, &f->deliver);
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
	if (nobody(&p) && ours(&p.tuple.destination))
		return drop(skb, HOOK_FROM_NETWORK, -DROP_SPOOFED_ADDRESS, &p.tuple);
	if (p.icmp == ICMP_KIND_ERROR)
		return network_error(skb, &p);

	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow fresh;
	struct flow *f = recall(&p, now);
	if (!f) {
		struct pod *pod = ours(&p.tuple.destination);
		if (!pod)
			return pass(skb, HOOK_FROM_NETWORK);
		__builtin_memset(&fresh, 0, sizeof(fresh));
		fresh.to = p.tuple;
		fresh.deliver = pod->wire;
		if (pod_of(&p.tuple.source))
			return drop(skb, HOOK_FROM_NETWORK, -DROP_SPOOFED_ADDRESS, &p.tuple);
		f = remember(&p, &fresh, now, &error);
		if (!f)
			return drop(skb, HOOK_FROM_NETWORK, error, &p.tuple);
	} else if (f->flags & FLOW_BESIDE) { /* translated at its client's wire */
		return pass(skb, HOOK_FROM_NETWORK);
	} else if (f->from.ifindex) { /* a pod of this node as source, from outside */
		return drop(skb, HOOK_FROM_NETWORK, -DROP_SPOOFED_ADDRESS, &p.tuple);
	} else {
		track(f, &p, now);
	}
	/* Ends here: the stack tells its sender, of the packet as that knows it. */
	if (p.ttl <= 1)
		return pass(skb, HOOK_FROM_NETWORK);
	return deliver(skb, &p, HOOK_FROM_NETWORK, &f->to, f->flags & FLOW_NAT, &f->deliver);
}
