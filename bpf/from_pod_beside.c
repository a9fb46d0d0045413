/* tc ingress of a pod's host-side interface that another CNI plugin made: a bridge's port, or a routed veth.
 *
 * Only services are ours here. A packet for a service becomes one for its backend, and goes the plugin's way from there
 * as if the pod had called the backend itself. Its answers are translated back at this same interface
 * (to_pod_beside.c), so the plugin's bridge, routes, filters and masquerading, and the host's conntrack, see one
 * connection between pod and backend, both ways. Everything else passes untouched: which addresses, protocols and
 * peers a pod may use is the plugin's to say, and nothing here depends on knowing whose interface this is. */

/* A pod that reached itself through its own service: both directions leave and enter by one wire. */
static __always_inline bool returns_to_sender(const struct flow *f, const struct packet *p)
{
	return same_address(&f->to.destination, &p->tuple.source);
}

/* Broadcast and multicast, and what a pod tags for a VLAN: about no service. */
static __always_inline bool is_plain_unicast(struct __sk_buff *skb)
{
	struct ethhdr *ethernet = data_of(skb);
	return (void *)(ethernet + 1) <= end_of(skb) && !(ethernet->h_dest[0] & 1) && !skb->vlan_present;
}

/* May this packet begin a connection? The middle of one that we don't know began before us: whoever translated it then,
 * in the host's conntrack, still does. */
static __always_inline bool opens(const struct packet *p)
{
	return p->tuple.protocol == IPPROTO_UDP || asks_to_connect(p);
}

/* A connection without translation is followed too, or its answers could be taken for those of one through a service
 * with the same ends (claim_reply); but not when its destination has become a service. */
static __always_inline struct flow *recall_beside(struct packet *p, __u64 now)
{
	struct flow *f = recall(p, now);
	if (!f || (f->flags & (FLOW_NAT | FLOW_REPLY)) || !opens(p))
		return f;
	struct frontend frontend = {
		.address = p->tuple.destination,
		.port = p->tuple.destination_port,
		.protocol = p->tuple.protocol,
	};
	if (!services.lookup(&frontend))
		return f;
	flows.delete(&p->tuple);
	return NULL;
}

/* NULL with *error 0: not ours. */
static __always_inline struct flow *open_beside(struct __sk_buff *skb, struct packet *p, __u64 now, int *error)
{
	*error = 0;
	if (p->icmp == ICMP_KIND_ECHO)
		served_elsewise(&p->tuple, error);
	if (!opens(p))
		return NULL;
	struct flow *f = blank_flow(SCRATCH_FORWARD);
	if (!f)
		return NULL;
	f->to = p->tuple;
	f->flags = FLOW_BESIDE;
	struct pod *pod = NULL;
	*error = find_backend(f, HOOK_FROM_POD, &pod);
	if (*error)
		return NULL;
	if (pod)
		f->deliver = pod->wire;
	source_hairpin(f, &p->tuple);
	struct address address = p->tuple.source;
	pod = pods.lookup(&address);
	if (pod && pod->wire.ifindex == skb->ingress_ifindex)
		f->from = pod->wire;
	meet(skb, f, &p->tuple);
	f->generation = generation_of(f) - 1; /* not judged: a pod at the other end that is ours is asked there */
	bool served = f->flags & FLOW_NAT;
	f = remember(p, f, now, error);
	if (!served && *error) /* a full table is no reason to stop what is not ours */
		*error = 0;
	return f;
}

/* A backend on the bridge that the pod is on too is called by its MAC, as the pod itself would call it: through the
 * gateway, only one direction would pass the host's stack. */
static __always_inline int address_on_bridge(struct __sk_buff *skb, const struct flow *f)
{
	struct address address = f->to.destination;
	__u16 segment = f->from.segment;
	if (segment < 2)
		return 0;
	struct pod *pod = pods.lookup(&address);
	if (!pod || pod->wire.segment != segment)
		return 0;
	return bpf_skb_store_bytes(skb, 0, pod->wire.mac, 6, 0) ? -DROP_REWRITE : 0;
}

/* Let a packet go that is, or (`nat`) shall be, as its flow says: back into the pod, or the plugin's way. */
static __always_inline int leave_beside(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, bool nat,
					bool back)
{
	struct hop hop = {};
	if (back) {
		hop.outcome = OUTCOME_POD;
		hop.ifindex = skb->ingress_ifindex;
		__builtin_memcpy(hop.destination, p->mac, 6);
		/* On a bridge's port it is a packet for somebody else, until it gets to the bridge. */
		bpf_skb_change_type(skb, PACKET_HOST);
	}
	return leave(skb, p, HOOK_FROM_POD, to, nat, &hop);
}

static __always_inline int pod_error_beside(struct __sk_buff *skb, struct packet *p)
{
	struct quote q = {};
	int error;
	struct flow *f = find_error(skb, p, &q, &error);
	if (!f || !(f->flags & FLOW_NAT))
		return pass(skb, HOOK_FROM_POD);
	bool back = returns_to_sender(f, p);
	if ((f->flags & FLOW_REPLY) && (f->flags & FLOW_BESIDE) && !back)
		return pass(skb, HOOK_FROM_POD); /* translated at the client's wire */
	error = translate_error(skb, p, &q, f);
	if (error)
		return drop(skb, HOOK_FROM_POD, error, &p->tuple);
	if (f->flags & FLOW_HOST)
		return deliver_to_host(skb, p, HOOK_FROM_POD, &p->tuple, false, &f->deliver);
	return leave_beside(skb, p, &p->tuple, false, back);
}

int from_pod_beside(struct __sk_buff *skb)
{
	struct packet p = {};
	int error = parse(skb, &p);

	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error || p.icmp == ICMP_KIND_NEIGHBOUR || !is_plain_unicast(skb))
		return pass(skb, HOOK_FROM_POD);
	if (p.icmp == ICMP_KIND_ERROR)
		return pod_error_beside(skb, &p);

	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *f = recall_beside(&p, now);
	if (f)
		error = track(f, &p, now);
	else
		f = open_beside(skb, &p, now, &error);
	if (refused(error)) {
		bpf_skb_change_type(skb, PACKET_HOST);
		return reject(skb, &p, HOOK_FROM_POD, error);
	}
	if (error)
		return drop(skb, HOOK_FROM_POD, error, &p.tuple);
	if (!f || !(f->flags & FLOW_NAT))
		return pass(skb, HOOK_FROM_POD);
	if (!(f->flags & FLOW_BESIDE)) /* opened by another hook of ours: its way */
		return deliver(skb, &p, HOOK_FROM_POD, &f->to, f->flags, &f->deliver);
	bool back = returns_to_sender(f, &p);
	if ((f->flags & FLOW_REPLY) && !back)
		return pass(skb, HOOK_FROM_POD); /* translated at the client's wire */
	if (!back)
		error = address_on_bridge(skb, f);
	if (error)
		return drop(skb, HOOK_FROM_POD, error, &p.tuple);
	return leave_beside(skb, &p, &f->to, true, back);
}
