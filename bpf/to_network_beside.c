/* tc egress of the uplink, where pods are on another CNI plugin's wires: the answers of such a pod to a client outside,
 * which the plugin brought here as those of the pod itself, become the service's. All else as in to_network. */

/* The answers of a connection that from_network led to a pod on another plugin's wire. */
static __always_inline bool leaves_from_beside(const struct flow *f)
{
	const __u8 all = FLOW_NAT | FLOW_REPLY | FLOW_BESIDE;
	return (f->flags & all) == all && !f->deliver.ifindex;
}

static __always_inline int forwarded_beside(struct __sk_buff *skb)
{
	struct packet p = {};
	struct quote q = {};
	struct hop stack = {};
	struct flow *f;
	int error = parse(skb, &p);

	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error || p.icmp == ICMP_KIND_NEIGHBOUR)
		return pass(skb, HOOK_TO_NETWORK);
	if (p.icmp == ICMP_KIND_ERROR) {
		f = find_error(skb, &p, &q, &error);
		error = f && leaves_from_beside(f) ? translate_error(skb, &p, &q, f) : 0;
		return error ? drop(skb, HOOK_TO_NETWORK, error, &p.tuple) : pass(skb, HOOK_TO_NETWORK);
	}
	f = flows.lookup(&p.tuple); /* accounted at the pod's wire */
	if (!f || !leaves_from_beside(f))
		return pass(skb, HOOK_TO_NETWORK);
	return leave(skb, &p, HOOK_TO_NETWORK, &f->to, true, &stack);
}

int to_network_beside(struct __sk_buff *skb)
{
	return skb->ingress_ifindex ? forwarded_beside(skb) : from_process(skb, HOOK_TO_NETWORK);
}
