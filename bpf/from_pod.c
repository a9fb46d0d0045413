/* tc ingress of a pod's host-side veth: everything a pod sends. */

/* What is not IP: ARP for the gateway, with the pod's own address. The rest has no business here. */
static __always_inline int pod_arp(struct __sk_buff *skb, const struct packet *p)
{
	struct {
		__be16 hardware, protocol;
		__u8 hardware_length, protocol_length;
		__be16 operation;
		__u8 sender[6];
		__u8 address[4];
	} arp;
	struct ethhdr ethernet;
	struct address address;
	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return -DROP_TRUNCATED;
	if (skb->vlan_present || ethernet.h_proto != bpf_htons(ETH_P_ARP))
		return -DROP_UNSUPPORTED_ETHERTYPE;
	if (bpf_skb_load_bytes(skb, ETHERNET_LENGTH, &arp, 18))
		return -DROP_TRUNCATED;
	__be32 sender;
	__builtin_memcpy(&sender, arp.address, 4);
	if (sender == 0) /* RFC 5227 probe */
		return 0;
	map_ipv4(&address, sender);
	struct pod *pod = pods.lookup(&address);
	if (!pod || pod->wire.ifindex != skb->ingress_ifindex)
		return -DROP_SPOOFED_ADDRESS;
	return same_mac(pod->wire.mac, p->mac) && same_mac(pod->wire.mac, arp.sender) ? 0 : -DROP_SPOOFED_MAC;
}

static __always_inline bool is_link_local(const struct address *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Neighbour discovery: between the pod and the node only, so a link-local or unspecified source is right. */
static __always_inline bool neighbour_source(const struct packet *p)
{
	const struct address *a = &p->tuple.source;
	bool unspecified = !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
	return p->icmp == ICMP_KIND_NEIGHBOUR && (unspecified || is_link_local(a));
}

/* The pod that sends, which it does only from its own addresses and MAC. NULL: *error says what is wrong. */
static __always_inline struct pod *sender_of(struct __sk_buff *skb, const struct packet *p, int *error)
{
	struct pod *pod = pods.lookup(&p->tuple.source);
	*error = -DROP_SPOOFED_ADDRESS;
	if (!pod || pod->wire.ifindex != skb->ingress_ifindex)
		return NULL;
	*error = -DROP_SPOOFED_MAC;
	if (!same_mac(pod->wire.mac, p->mac))
		return NULL;
	*error = 0;
	return pod;
}

static __always_inline int pod_error(struct __sk_buff *skb, struct packet *p)
{
	struct flow *f = NULL;
	struct quote q = {};
	int error;
	if (sender_of(skb, p, &error))
		f = find_error(skb, p, &q, &error);
	if (f) /* not about somebody else's connection */
		error = f->from.ifindex != skb->ingress_ifindex ? -DROP_SPOOFED_ADDRESS : consent_to_error(f);
	if (f && !error)
		error = translate_error(skb, p, &q, f);
	if (!f || error)
		return drop(skb, HOOK_FROM_POD, error, &p->tuple);
	return deliver(skb, p, HOOK_FROM_POD, &p->tuple, f->flags & FLOW_HOST, &f->deliver);
}

/* The first packet of a connection: who sends, which backend, which wire. Not remembered yet. */
static __always_inline struct flow *open_flow(struct __sk_buff *skb, struct packet *p, int *error)
{
	struct flow *f = blank_flow(SCRATCH_FORWARD);
	*error = -DROP_FLOW_TABLE;
	if (!f)
		return NULL;
	__u32 settled = settled_generation();
	struct pod *sender = sender_of(skb, p, error);
	if (!sender)
		return NULL;
	f->from = sender->wire;
	f->to = p->tuple;
	struct pod *pod = NULL;
	*error = find_backend(f, HOOK_FROM_POD, &pod);
	if (*error)
		return NULL;
	source_hairpin(f, &p->tuple);
	if (pod)
		f->deliver = pod->wire;
	keep_groups(p, f, settled, group_of(sender), group_of(pod));
	meet(skb, f, &p->tuple);
	return f;
}

int from_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	int error = parse(skb, &p);

	if (error == -DROP_UNSUPPORTED_ETHERTYPE) {
		error = pod_arp(skb, &p);
		if (!error)
			return pass(skb, HOOK_FROM_POD);
	}
	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error)
		return drop(skb, HOOK_FROM_POD, error, &p.tuple);
	if (p.icmp == ICMP_KIND_ERROR)
		return pod_error(skb, &p);
	if (p.icmp == ICMP_KIND_NEIGHBOUR) {
		if (!neighbour_source(&p))
			sender_of(skb, &p, &error);
		return error ? drop(skb, HOOK_FROM_POD, error, &p.tuple) : pass(skb, HOOK_FROM_POD);
	}

	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *f = recall(&p, now);
	bool fresh = !f;
	if (fresh)
		f = open_flow(skb, &p, &error);
	else if (f->from.ifindex != skb->ingress_ifindex)
		error = -DROP_SPOOFED_ADDRESS;
	else if (!same_mac(f->from.mac, p.mac))
		error = -DROP_SPOOFED_MAC;
	if (f && !error)
		error = consent(skb, HOOK_FROM_POD, &p, &p.tuple, f, fresh);
	if (f && !error) {
		if (fresh)
			f = remember(&p, f, now, &error);
		else
			error = track(f, &p, now);
	}
	if (refused(error))
		return reject(skb, &p, HOOK_FROM_POD, error);
	if (error || !f)
		return drop(skb, HOOK_FROM_POD, error, &p.tuple);
	return deliver(skb, &p, HOOK_FROM_POD, &f->to, f->flags, &f->deliver);
}
