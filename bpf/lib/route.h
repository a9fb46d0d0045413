/* Where the kernel's routing table leads. An answer of it costs 90 ns, or 220 for IPv6, which is more than all else that a
 * known connection's packet needs; so each processor keeps what it was told, for as long as the coarse clock stands: a tick,
 * 10 ms at most. A packet is then where it would be had it come a tick earlier. */

#define AF_INET 2
#define AF_INET6 10

/* Bytes of the largest IP packet that will be on the wire: GSO trains are cut first. */
static __always_inline __u32 wire_length(struct __sk_buff *skb, const struct packet *p)
{
	if (!skb->gso_size) /* TCP counts a single segment, too: gso_segs is 1 */
		return skb->len - ETHERNET_LENGTH;
	__u32 transport = p->tuple.protocol == IPPROTO_TCP ? p->tcp_header : 8;
	return p->l4 - p->jumbo - ETHERNET_LENGTH + transport + skb->gso_size;
}

_Static_assert(ROUTES == 1 << 8, "an answer's place is 8 bits of a product");

/* The place of the answer for a packet's two ends, by the words in which pods' addresses differ. Multiplied by an odd number
 * (Knuth's 2^32 over the golden ratio), all bits of the sum reach the highest. */
static __always_inline struct route *place_of(const struct tuple *to)
{
	const struct address *a = &to->source, *b = &to->destination;
	__u32 sum = a->word[3] + a->word[2] + 31 * (b->word[3] + b->word[2]);
	__u32 index = (sum * 0x9e3779b1) >> 24;
	return routes.lookup(&index);
}

static __always_inline bool is_answer_for(const struct route *r, const struct tuple *to, __u32 ifindex, __u8 tos,
					  __u64 now)
{
	return r->asked_ns == now && same_address(&r->destination, &to->destination) &&
	       same_address(&r->source, &to->source) && r->from == ifindex && r->tos == tos;
}

/* Ask for a packet of so many bytes that came in at `ifindex`. Returns BPF_FIB_LKUP_RET_*, for which the answer is filled in
 * when it is a hop or an MTU. */
static __always_inline int ask_table(struct __sk_buff *skb, const struct packet *p, const struct tuple *to,
				     __u32 ifindex, __u32 length, struct route *answer)
{
	struct bpf_fib_lookup fib = {};

	fib.ifindex = ifindex;
	fib.tot_len = length;
	if (p->ipv6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &to->source, 16);
		__builtin_memcpy(fib.ipv6_dst, &to->destination, 16);
	} else {
		/* 0.0.0.0/8, multicast and broadcast: a default route matches all the same. The stack knows better. */
		__u8 first = to->destination.word[3] & 0xff;
		if (first == 0 || first >= 224)
			return BPF_FIB_LKUP_RET_NOT_FWDED;
		fib.family = AF_INET;
		fib.tos = p->tos;
		fib.ipv4_src = to->source.word[3];
		fib.ipv4_dst = to->destination.word[3];
	}
	int said = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	answer->ifindex = fib.ifindex;
	answer->mtu = fib.mtu_result;
	__builtin_memcpy(answer->hop_mac, fib.dmac, 6);
	__builtin_memcpy(answer->own_mac, fib.smac, 6);
	return said;
}

/* Find the way of a packet that came in at `ifindex`; a next hop whose MAC nobody knows yet is the kernel's to find
 * (bpf_redirect_neigh). Whatever the table does not answer plainly (no route, a route for us, a tunnel of the route's own)
 * leaves the hop as it is, for the stack. Returns the path's MTU when the packet, with so many `more` bytes, is too big,
 * else 0. */
static __always_inline __u32 route(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, __u32 ifindex,
				   __u32 more, struct hop *hop)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 length = wire_length(skb, p) + more;
	struct route *r = place_of(to);
	if (!r)
		return 0;
	if (!is_answer_for(r, to, ifindex, p->tos, now) || length > r->mtu) {
		r->asked_ns = 0;
		int said = ask_table(skb, p, to, ifindex, length, r);
		if (said == BPF_FIB_LKUP_RET_FRAG_NEEDED)
			return r->mtu;
		if (said != BPF_FIB_LKUP_RET_SUCCESS && said != BPF_FIB_LKUP_RET_NO_NEIGH)
			return 0;
		hop->neighbour = said == BPF_FIB_LKUP_RET_NO_NEIGH;
		if (!hop->neighbour) {
			r->source = to->source;
			r->destination = to->destination;
			r->from = ifindex;
			r->tos = p->tos;
			r->asked_ns = now;
		}
	}
	hop->outcome = OUTCOME_NETWORK;
	hop->ifindex = r->ifindex;
	__builtin_memcpy(hop->destination, r->hop_mac, 6);
	__builtin_memcpy(hop->source, r->own_mac, 6);
	return 0;
}
