/* Direct server return: what is for a backend elsewhere goes to that backend's node as it came, in a second IP header
 * (RFC 2003, RFC 2473), and the node there answers the client itself, as the service. Outer destination is the backend,
 * so routes know its node; the backend's port is the IPv4 identification, which means nothing in a datagram that is not
 * to be cut (RFC 6864 §4.1), or the low 16 bits of the IPv6 flow label. A train's segments count the identification up;
 * only the first packet of a connection is looked at for it. */

#define PROTOCOL_IN_IPV4 4  /* IPv4 in IPv4 */
#define PROTOCOL_IN_IPV6 41 /* IPv6 in IPv6 */
#define DSCP_MASK 0xfc /* no ECN outside: RFC 6040 §4.1, compatibility mode; so none is to be brought in (§4.2) */

/* Bytes of the second header. */
static __always_inline __u32 shell_length(const struct packet *p)
{
	return p->ipv6 ? 40 : 20;
}

/* The second header's tuple, for a flow that is FLOW_DIRECT; NULL: the node has no address of this family. */
static __always_inline struct tuple *outer_of(const struct packet *p, const struct flow *f)
{
	__u32 zero = 0;
	struct node *us = node.lookup(&zero);
	struct flow *room = blank_flow(SCRATCH_BACK);
	if (!us || !room)
		return NULL;
	address_of_node(us, p->ipv6, &room->to.source);
	room->to.destination = f->to.destination;
	room->to.destination_port = f->to.destination_port;
	return is_nothing(&room->to.source) ? NULL : &room->to;
}

/* The way of a packet, in its second header. Returns 0 or -DROP_*; *mtu is what the packet may have for -DROP_TOO_BIG. */
static __always_inline int route_wrapped(struct __sk_buff *skb, const struct packet *p, const struct tuple *outer,
					 struct hop *hop, __u32 *mtu)
{
	__u32 more = shell_length(p);
	if (!outer)
		return -DROP_NO_SOURCE_ADDRESS;
	__u32 whole = route(skb, p, outer, skb->ingress_ifindex, more, hop);
	if (whole) {
		*mtu = whole - more;
		return -DROP_TOO_BIG;
	}
	/* The stack would take what has the node's address as its source for forged. */
	return hop->outcome == OUTCOME_NETWORK ? 0 : -DROP_NO_ROUTE;
}

static __always_inline int write_shell_ipv4(struct __sk_buff *skb, const struct packet *p, const struct tuple *outer)
{
	__u32 length = 20 + p->l4 - ETHERNET_LENGTH + p->l4_length;
	struct iphdr ip = { .version = 4, .ihl = 5, .ttl = TTL_DEFAULT, .protocol = PROTOCOL_IN_IPV4 };
	ip.tos = p->tos & DSCP_MASK;
	ip.tot_len = length > 0xffff ? 0 : bpf_htons(length); /* BIG TCP */
	ip.id = outer->destination_port;
	ip.frag_off = bpf_htons(IPV4_DF);
	ip.saddr = outer->source.word[3];
	ip.daddr = outer->destination.word[3];
	ip.check = csum_finish(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	return bpf_skb_store_bytes(skb, ETHERNET_LENGTH, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int write_shell_ipv6(struct __sk_buff *skb, const struct packet *p, const struct tuple *outer,
					    __be32 first)
{
	__u32 length = p->l4 - ETHERNET_LENGTH + p->l4_length;
	struct {
		__be32 first; /* version, class, flow label */
		__be16 length;
		__u8 next;
		__u8 hop_limit;
		struct address source, destination;
	} ip = { .next = PROTOCOL_IN_IPV6, .hop_limit = TTL_DEFAULT };
	ip.first = (first & bpf_htonl(0xf0000000 | DSCP_MASK << 20)) | bpf_htonl(bpf_ntohs(outer->destination_port));
	ip.length = length > 0xffff ? 0 : bpf_htons(length);
	ip.source = outer->source;
	ip.destination = outer->destination;
	return bpf_skb_store_bytes(skb, ETHERNET_LENGTH, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

/* Put the second header around a packet. A train stays one: the kernel cuts it, with this header before each piece. */
static __always_inline int wrap(struct __sk_buff *skb, const struct packet *p, const struct tuple *outer)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	__be32 first;
	int error;
	flags |= p->ipv6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	if (bpf_skb_load_bytes(skb, ETHERNET_LENGTH, &first, sizeof(first)) ||
	    bpf_skb_adjust_room(skb, shell_length(p), BPF_ADJ_ROOM_MAC, flags))
		return -DROP_REWRITE;
	error = p->ipv6 ? write_shell_ipv6(skb, p, outer, first) : write_shell_ipv4(skb, p, outer);
	return error ? -DROP_REWRITE : 0;
}

/* Send a packet on in its second header; what is inside has come one hop further. */
static __always_inline int leave_wrapped(struct __sk_buff *skb, const struct packet *p, const struct tuple *outer,
					 const struct hop *hop)
{
	int error = outer ? rewrite(skb, p, &p->tuple, false, hop) : -DROP_NO_SOURCE_ADDRESS;
	if (!error)
		error = wrap(skb, p, outer);
	if (error)
		return drop(skb, HOOK_FROM_NETWORK, error, &p->tuple);
	return finish(skb, HOOK_FROM_NETWORK, OUTCOME_NETWORK, hop->ifindex, send_to_network(hop));
}

/* Is a connection sent on like that now, of which one packet was? Else its next one chooses anew, for the backend's node
 * may have refused it: annotations do not change on all nodes at once. */
static __always_inline bool still_direct(const struct packet *p, const struct flow *f)
{
	if (!(f->flags & FLOW_DIRECT) || f->state != FLOW_NEW || (is_stream(p->tuple.protocol) && !asks_to_connect(p)))
		return true;
	struct service *service = service_of(&p->tuple.destination, p->tuple.destination_port, p->tuple.protocol);
	if (!service)
		service = nodeport_of(&p->tuple);
	return !service || (service->marks & MARK_DIRECT);
}

/* Did parse() end at a second header, of a packet that is for a backend here? Then `way` is that backend, and *shell what
 * goes before the packet itself. */
static __always_inline bool is_wrapped(struct __sk_buff *skb, const struct packet *p, struct member *way, __u32 *shell)
{
	__u32 length = shell_length(p);
	if (p->fragment != FRAGMENT_NO || p->l4 != ETHERNET_LENGTH + length ||
	    p->tuple.protocol != (p->ipv6 ? PROTOCOL_IN_IPV6 : PROTOCOL_IN_IPV4))
		return false;
	if (!pod_of(&p->tuple.destination) && !(marks_of(&p->tuple.destination) & MARK_OWN))
		return false;
	way->backend.address = p->tuple.destination;
	way->backend.port = p->fragment_id;
	if (p->ipv6) {
		__be32 first;
		if (bpf_skb_load_bytes(skb, ETHERNET_LENGTH, &first, sizeof(first)))
			return false;
		way->backend.port = bpf_htons(bpf_ntohl(first) & 0xffff);
	}
	*shell = length;
	return true;
}

/* Does a flow lead clients of the network to backends here? */
static __always_inline bool leads_here(const struct flow *f)
{
	return (f->flags & (FLOW_NAT | FLOW_REPLY | FLOW_HOST | FLOW_DIRECT)) == FLOW_NAT && !f->from.ifindex;
}

/* May a packet that came in a second header open a connection? Only if its client may call the service at the node that
 * sent it on, which only a service with the annotation lets do that, and the backend is one of the service's. */
static __always_inline bool is_welcome(const struct packet *p, struct member *way)
{
	const struct tuple *t = &p->tuple;
	if (!begins(p) || !has_ports(t->protocol))
		return false;
	struct service *service = service_of(&t->destination, t->destination_port, t->protocol);
	if (!service && (marks_of(&t->destination) & MARK_NODE))
		service = nodeport_of(t);
	if (!service || !(service->marks & MARK_TAKEN) || !in_range(service, &t->source) ||
	    block_of(&t->source) == BLOCK_PODS)
		return false;
	way->set = service->outside;
	return members.lookup(way) != NULL;
}

/* Lead a new connection the way that another node chose. */
static __always_inline void take_way(struct flow *f, const struct member *way)
{
	f->service = way->set;
	point_at(f, &way->backend);
}

/* Take the second header off. All in the kernel that it changes is of one family, so the flags that name the family, which
 * Linux 6.1 does not know, would say nothing. */
static __always_inline int unwrap(struct __sk_buff *skb, struct packet *p, __u32 shell)
{
	if (bpf_skb_adjust_room(skb, -(__s32)shell, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return -DROP_REWRITE;
	p->l4 -= shell;
	p->unwrapped = true;
	return 0;
}
