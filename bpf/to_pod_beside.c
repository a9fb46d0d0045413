/* tc egress of a pod's host-side interface that another CNI plugin made: answers on their way to the pod that called a
 * service, whichever way the plugin brought them, become the service's. Everything else passes untouched. */

/* The answers of a connection through a service, here at its client. */
static __always_inline bool is_answer(const struct flow *f)
{
	return (f->flags & (FLOW_NAT | FLOW_REPLY)) == (FLOW_NAT | FLOW_REPLY);
}

static __always_inline int error_beside(struct __sk_buff *skb, struct packet *p)
{
	struct quote q = {};
	int error;
	struct flow *f = find_error(skb, p, &q, &error);
	error = f && is_answer(f) ? translate_error(skb, p, &q, f) : 0;
	return error ? drop(skb, HOOK_TO_POD, error, &p->tuple) : pass(skb, HOOK_TO_POD);
}

int to_pod_beside(struct __sk_buff *skb)
{
	struct packet p = {};
	struct hop stack = {};
	int error = parse(skb, &p);

	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error || skb->vlan_present)
		return pass(skb, HOOK_TO_POD);
	if (p.icmp == ICMP_KIND_ERROR)
		return error_beside(skb, &p);

	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *f = recall(&p, now);
	if (!f)
		return pass(skb, HOOK_TO_POD);
	error = track(f, &p, now);
	if (error)
		return drop(skb, HOOK_TO_POD, error, &p.tuple);
	return is_answer(f) ? leave(skb, &p, HOOK_TO_POD, &f->to, true, &stack) : pass(skb, HOOK_TO_POD);
}
