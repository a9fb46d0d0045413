/* tc egress of a pod's host-side veth: what reaches a pod through the host's stack. Whatever from_pod or from_network
 * delivered went past this hook. */

/* Was it translated already, as a question of this node's own to a service (lib/host.h)? The answers' key is taken then. A
 * connection that is closing says nothing about a new one from the same port. */
static __always_inline bool asked_by_process(const struct packet *p)
{
	struct tuple answer;
	reverse(&answer, &p->tuple);
	struct flow *f = flows.lookup(&answer);
	return f && (f->flags & FLOW_HOST) && !(f->state == FLOW_CLOSING && (p->tcp_flags & TCP_SYN));
}

/* Is an error about what the pod itself sent, untranslated? So deliver() lets go up what can't go on from here. */
static __always_inline bool quotes_receiver(const struct packet *p, struct quote *q)
{
	return same_address(&p->tuple.destination, &q->tuple.source) && flows.lookup(&q->tuple);
}

int to_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	struct flow *f = NULL;
	int error = parse(skb, &p);

	/* ARP, neighbour discovery, listener queries, redirects: the node as the pod's router */
	if (error == -DROP_UNSUPPORTED_ETHERTYPE || error == -DROP_UNSUPPORTED_ICMP ||
	    (!error && p.icmp == ICMP_KIND_NEIGHBOUR))
		return pass(skb, HOOK_TO_POD);
	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error)
		return drop(skb, HOOK_TO_POD, error, &p.tuple);
	if (p.icmp == ICMP_KIND_ERROR) {
		struct quote q = {};
		f = find_error(skb, &p, &q, &error);
		if (f)
			error = translate_error(skb, &p, &q, f);
		else if (error == -DROP_FLOW_UNKNOWN && quotes_receiver(&p, &q))
			error = 0;
		return error ? drop(skb, HOOK_TO_POD, error, &p.tuple) : pass(skb, HOOK_TO_POD);
	}

	__u64 now = bpf_ktime_get_coarse_ns();
	f = recall(&p, now);
	if (f) {
		struct hop stack = {};
		error = track(f, &p, now);
		if (error) /* refused at once where its sender is known; here it is not any more */
			return drop(skb, HOOK_TO_POD, error, &p.tuple);
		return leave(skb, &p, HOOK_TO_POD, &f->to, f->flags & FLOW_NAT, &stack);
	}
	/* From a pod of this node: judged, translated and remembered at from_pod. */
	struct address address = p.tuple.source;
	if (pods.lookup(&address))
		return pass(skb, HOOK_TO_POD);
	if (asked_by_process(&p))
		return pass(skb, HOOK_TO_POD);
	address = p.tuple.destination;
	struct pod *pod = pods.lookup(&address);
	f = blank_flow(SCRATCH_FORWARD);
	if (pod && f) {
		f->to = p.tuple;
		f->deliver = pod->wire;
		if (!remember(&p, f, now, &error))
			return drop(skb, HOOK_TO_POD, error, &p.tuple);
	}
	return pass(skb, HOOK_TO_POD);
}
