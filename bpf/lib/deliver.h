/* Where a packet goes once its tuple is decided: into a pod of this node, to another node, or up the stack. */

#define AF_INET 2
#define AF_INET6 10

/* Bytes of the largest IP packet that will be on the wire: GSO trains are cut first. */
static __always_inline __u32 wire_length(struct __sk_buff *skb, const struct packet *p)
{
	if (!skb->gso_segs)
		return skb->len - ETHERNET_LENGTH;
	__u32 transport = p->tuple.protocol == IPPROTO_TCP ? p->tcp_header : 8;
	return p->l4 - p->jumbo - ETHERNET_LENGTH + transport + skb->gso_size;
}

/* Ask the kernel's routing table; whatever it does not answer plainly (neighbour unknown, packet too big, no route)
 * is the stack's to handle, with its ICMP errors. */
static __always_inline void route(struct __sk_buff *skb, const struct packet *p, const struct tuple *to,
				  struct hop *hop)
{
	struct bpf_fib_lookup fib = {};

	fib.ifindex = skb->ingress_ifindex;
	fib.tot_len = wire_length(skb, p);
	if (p->ipv6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &to->source, 16);
		__builtin_memcpy(fib.ipv6_dst, &to->destination, 16);
	} else {
		/* 0.0.0.0/8, multicast and broadcast: a default route matches all the same. The stack knows better. */
		__u8 first = to->destination.word[3] & 0xff;
		if (first == 0 || first >= 224)
			return;
		fib.family = AF_INET;
		fib.tos = p->tos;
		fib.ipv4_src = to->source.word[3];
		fib.ipv4_dst = to->destination.word[3];
	}
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return;
	hop->outcome = OUTCOME_NETWORK;
	hop->ifindex = fib.ifindex;
	__builtin_memcpy(hop->destination, fib.dmac, 6);
	__builtin_memcpy(hop->source, fib.smac, 6);
}

/* Change the packet and let it go. */
static __always_inline int leave(struct __sk_buff *skb, const struct packet *p, __u32 hook, const struct tuple *to,
				 bool nat, const struct hop *hop)
{
	int error = rewrite(skb, p, to, nat, hop);
	int verdict = TC_ACT_UNSPEC;
	if (error)
		return drop(skb, hook, error, &p->tuple);
	if (hop->outcome == OUTCOME_POD)
		verdict = bpf_redirect_peer(hop->ifindex, 0);
	else if (hop->outcome == OUTCOME_NETWORK)
		verdict = bpf_redirect(hop->ifindex, 0);
	return finish(skb, hook, hop->outcome, hop->ifindex, verdict);
}

/* Up the stack as it is. TC_ACT_UNSPEC decides nothing: other tools' programs at this hook run, and may. */
static __always_inline int pass(struct __sk_buff *skb, __u32 hook)
{
	return finish(skb, hook, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
}

/* Send a packet on its way. A time to live that ends here is the stack's to answer. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p, __u32 hook, const struct tuple *to,
				   bool nat, const struct wire *wire)
{
	struct hop hop = {};
	if (p->ttl > 1) {
		if (wire->ifindex) {
			hop.outcome = OUTCOME_POD;
			hop.ifindex = wire->ifindex;
			__builtin_memcpy(hop.destination, wire->mac, 6);
		} else if (hook == HOOK_FROM_POD) {
			route(skb, p, to, &hop);
		}
	}
	return leave(skb, p, hook, to, nat, &hop);
}
