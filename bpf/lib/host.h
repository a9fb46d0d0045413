/* Processes of this node, host-network pods among them, as clients of services: what they send is met where it leaves, on
 * the uplink or, for the node's own addresses, on loopback, and goes to its backend from there. Host processes as
 * backends: their answers are translated at the same place. */

/* The source of frames from loopback, which has no MAC of its own; pods learn MACs from ARP and neighbour discovery. */
#define LOOPBACK_MAC_WORD 0x02
#define IPV6_MTU_MIN 1280 /* no link takes less (RFC 8200 §5), so a smaller packet need not be measured */

/* The first packet of a connection. NULL with *error 0: to no service. */
static __always_inline struct flow *open_from_process(struct __sk_buff *skb, struct packet *p, __u32 hook, __u64 now,
						      int *error)
{
	struct flow *f = blank_flow(SCRATCH_FORWARD);
	struct pod *pod = NULL;
	*error = 0;
	if (!f || !begins(p))
		return NULL;
	f->to = p->tuple;
	*error = find_backend(f, hook, &pod);
	if (*error || !(f->flags & FLOW_NAT))
		return NULL;
	f->flags |= FLOW_HOST;
	f->from.ifindex = skb->ifindex;
	__builtin_memcpy(f->from.mac, p->mac, 6);
	if (pod)
		f->deliver = pod->wire;
	else if (marks_of(&f->to.destination) & MARK_OWN)
		f->deliver.ifindex = LOOPBACK_IFINDEX;
	return remember(p, f, now, error);
}

/* Into a pod of this node, by its wire's host end: from egress there is no shorter way. The plugin of another's wire is
 * not asked, nor is it for answers (from_pod_beside), so its connection tracking sees neither. */
static __always_inline int process_to_pod(struct __sk_buff *skb, const struct packet *p, __u32 hook,
					  const struct wire *wire)
{
	struct hop hop = { .outcome = OUTCOME_NETWORK, .source = { LOOPBACK_MAC_WORD } };
	__builtin_memcpy(hop.destination, wire->mac, 6);
	if (hook != HOOK_FROM_HOST)
		__builtin_memcpy(hop.source, p->mac, 6);
	if (write_macs(skb, &hop))
		return drop(skb, hook, -DROP_REWRITE, &p->tuple);
	return finish(skb, hook, OUTCOME_POD, wire->ifindex, bpf_redirect(wire->ifindex, 0));
}

/* To a process of this node, through loopback: only there an own address as source comes from an own process
 * (accept_local, ebpfnet/datapath/loopback.py). */
static __always_inline int process_to_process(struct __sk_buff *skb, const struct packet *p, __u32 hook)
{
	struct hop hop = { .outcome = OUTCOME_NETWORK };
	if (hook == HOOK_FROM_HOST)
		return finish(skb, hook, OUTCOME_STACK, LOOPBACK_IFINDEX, TC_ACT_UNSPEC);
	if (write_macs(skb, &hop))
		return drop(skb, hook, -DROP_REWRITE, &p->tuple);
	return finish(skb, hook, OUTCOME_STACK, LOOPBACK_IFINDEX, bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS));
}

/* To the backend of a question, which the packet already names. The time to live counts from here. */
static __always_inline int send_to_backend(struct __sk_buff *skb, const struct packet *p, __u32 hook,
					   const struct wire *wire, const struct hop *hop)
{
	if (wire->ifindex == LOOPBACK_IFINDEX)
		return process_to_process(skb, p, hook);
	if (wire->ifindex)
		return process_to_pod(skb, p, hook, wire);
	if (hop->outcome != OUTCOME_NETWORK)
		return finish(skb, hook, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
	if (!hop->neighbour && write_macs(skb, hop))
		return drop(skb, hook, -DROP_REWRITE, &p->tuple);
	bool here = hop->ifindex == skb->ifindex && !hop->neighbour;
	return finish(skb, hook, OUTCOME_NETWORK, hop->ifindex, here ? TC_ACT_UNSPEC : send_to_network(hop));
}

/* The MTU of a pod's wire when a packet is too big for it, else 0. A datagram over loopback may have 64 KiB. */
static __always_inline __u32 too_big_for(struct __sk_buff *skb, const struct packet *p, const struct wire *wire)
{
	__u32 length = wire_length(skb, p);
	if (length <= IPV6_MTU_MIN || bpf_check_mtu(skb, wire->ifindex, &length, 0, 0) != BPF_MTU_CHK_RET_FRAG_NEEDED)
		return 0;
	return length; /* now the MTU */
}

/* Along a flow: a process' question, the answer to another process of this node or to a client outside, or, with `nat`
 * false, an error about one of them that is translated already. */
static __always_inline int send_along(struct __sk_buff *skb, const struct packet *p, __u32 hook, const struct flow *f,
				      bool nat, int error)
{
	struct hop hop = {}, stack = {};
	__u32 mtu = 0;
	const struct tuple *to = nat && f ? &f->to : &p->tuple;
	if (!error && !f) /* never, but the verifier can't know */
		error = -DROP_FLOW_TABLE;
	if (!error && (f->flags & (FLOW_HOST | FLOW_REPLY)) == FLOW_HOST)
		mtu = f->deliver.ifindex ? too_big_for(skb, p, &f->deliver) : route(skb, p, to, skb->ifindex, 0, &hop);
	if (mtu)
		error = -DROP_TOO_BIG;
	if (p->icmp != ICMP_KIND_ERROR && refused(error)) /* RFC 1122 §3.2.2: no error about an error */
		return answer_error(skb, p, hook, error, mtu);
	if (!error && (f->flags & (FLOW_HOST | FLOW_REPLY)) == (FLOW_HOST | FLOW_REPLY))
		return deliver_to_host(skb, p, hook, to, nat, &f->deliver);
	if (!error)
		error = rewrite(skb, p, to, nat, &stack);
	if (error)
		return drop(skb, hook, error, &p->tuple);
	if (!(f->flags & FLOW_HOST))
		return finish(skb, hook, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
	return send_to_backend(skb, p, hook, &f->deliver, &hop);
}

/* What an own process or the stack itself sends. */
static __always_inline int from_process(struct __sk_buff *skb, __u32 hook)
{
	struct packet p = {};
	struct flow *f;
	bool nat = false;
	int error = parse(skb, &p);

	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error || p.icmp == ICMP_KIND_NEIGHBOUR)
		return pass(skb, hook);
	if (p.icmp == ICMP_KIND_ERROR) {
		struct quote q = {};
		f = find_error(skb, &p, &q, &error);
		if (!f || !(f->flags & FLOW_NAT))
			return pass(skb, hook);
		error = translate_error(skb, &p, &q, f);
	} else {
		__u64 now = bpf_ktime_get_coarse_ns();
		f = recall(&p, now);
		if (f)
			error = track(f, &p, now);
		else
			f = open_from_process(skb, &p, hook, now, &error);
		if (!f && !error)
			return pass(skb, hook);
		nat = f && (f->flags & FLOW_NAT);
	}
	return send_along(skb, &p, hook, f, nat, error);
}
