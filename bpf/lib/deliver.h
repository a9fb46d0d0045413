/* Where a packet goes once its tuple is decided: into a pod of this node, to another node, up the stack, or to this node's
 * own process. */

#define IPV4_DF 0x4000
#define LOOPBACK_IFINDEX 1 /* in every network namespace (include/net/flow.h) */

/* BCC declares bpf_redirect_neigh without the length of the parameters. */
static long (*redirect_neighbour)(__u32 ifindex, void *parameters, int length,
				  __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

static __always_inline int send_to_network(const struct hop *hop)
{
	return hop->neighbour ? redirect_neighbour(hop->ifindex, NULL, 0, 0) : bpf_redirect(hop->ifindex, 0);
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
		verdict = send_to_network(hop);
	return finish(skb, hook, hop->outcome, hop->ifindex, verdict);
}

/* Up the stack as it is. TC_ACT_UNSPEC decides nothing: other tools' programs at this hook run, and may. */
static __always_inline int pass(struct __sk_buff *skb, __u32 hook)
{
	return finish(skb, hook, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
}

/* An answer to a process of this node: in at the interface that the question left by, where the routes of the socket
 * expect it, and netfilter's connection tracking saw the question. */
static __always_inline int deliver_to_host(struct __sk_buff *skb, const struct packet *p, __u32 hook,
					   const struct tuple *to, bool nat, const struct wire *wire)
{
	struct hop stack = {};
	int error = rewrite(skb, p, to, nat, &stack);
	/* It is there already, or on its way there: loopback's egress is its ingress. */
	bool there = (hook == HOOK_FROM_NETWORK && wire->ifindex == skb->ingress_ifindex) ||
		     (hook == HOOK_FROM_HOST && wire->ifindex == LOOPBACK_IFINDEX);
	if (!error && !there && bpf_skb_store_bytes(skb, 0, wire->mac, 6, 0))
		error = -DROP_REWRITE;
	if (error)
		return drop(skb, hook, error, &p->tuple);
	return finish(skb, hook, OUTCOME_STACK, wire->ifindex,
		      there ? TC_ACT_UNSPEC : bpf_redirect(wire->ifindex, BPF_F_INGRESS));
}

/* Have the stack say "fragmentation needed" of this packet; it would cut it up instead. */
static __always_inline void forbid_fragments(struct __sk_buff *skb)
{
	struct iphdr *ip = data_of(skb) + ETHERNET_LENGTH;
	if ((void *)(ip + 1) > end_of(skb) || (ip->frag_off & bpf_htons(IPV4_DF)))
		return;
	ip->frag_off |= bpf_htons(IPV4_DF);
	ip->check = csum_apply(ip->check, bpf_htons(IPV4_DF));
}

/* Send a packet on its way, along a flow with these flags. A time to live that ends here is the stack's to answer. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p, __u32 hook, const struct tuple *to,
				   __u8 flags, const struct wire *wire)
{
	struct hop hop = {};
	bool nat = flags & FLOW_NAT;
	__u32 mtu = 0;
	if (flags & FLOW_HOST)
		return deliver_to_host(skb, p, hook, to, nat, wire);
	if (p->ttl > 1) {
		if (wire->ifindex) {
			hop.outcome = OUTCOME_POD;
			hop.ifindex = wire->ifindex;
			__builtin_memcpy(hop.destination, wire->mac, 6);
		} else if (hook == HOOK_FROM_POD) {
			mtu = route(skb, p, to, skb->ingress_ifindex, 0, &hop);
		}
	}
	/* With a service's or the node's address as its source, the stack would take it for forged, and tell nobody what
	 * is wrong with it. As it came, the stack knows what to tell the pod. */
	if (hop.outcome == OUTCOME_STACK && nat && !same_address(&to->source, &p->tuple.source)) {
		if (mtu && !p->ipv6)
			forbid_fragments(skb);
		nat = false;
	}
	return leave(skb, p, hook, to, nat, &hop);
}
