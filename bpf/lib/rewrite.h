/* Changing packets: addresses, ports, MACs and time to live, with every checksum that covers them. */

/* Where a packet goes next. */
struct hop {
	__u32 outcome; /* OUTCOME_STACK: MACs and time to live are the stack's business */
	__u32 ifindex;
	__u8 destination[6]; /* MAC */
	__u8 source[6];	     /* OUTCOME_NETWORK only: a pod hears from the gateway that the packet was sent to */
	bool neighbour;	     /* OUTCOME_NETWORK only: the kernel is to find the MACs */
};

static __always_inline __sum16 csum_apply(__sum16 check, __u32 diff)
{
	__u32 sum = (__u16)~check + (diff & 0xffff) + (diff >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 csum_add(__u32 a, __u32 b)
{
	a += b;
	return a < b ? a + 1 : a;
}

/* Checksum difference of the addresses; the prefixes of mapped IPv4 cancel out, so one serves both families. No
 * bpf_csum_diff, which costs more than the sums: every translated packet passes here. */
static __always_inline __u32 address_diff(const struct tuple *from, const struct tuple *to)
{
	__u64 sum = 0;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		sum += (__u64)(__u32)~from->source.word[i] + to->source.word[i];
		sum += (__u64)(__u32)~from->destination.word[i] + to->destination.word[i];
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline int write_l4_checksum(struct __sk_buff *skb, const struct packet *p, __u32 addresses,
					     const struct tuple *to)
{
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	bool udp = p->tuple.protocol == IPPROTO_UDP;
	__u32 offset = p->l4 + (udp ? 6 : 16);
	__u64 zero_stays = udp ? BPF_F_MARK_MANGLED_0 : 0; /* RFC 768: zero means no checksum */
	__u32 old_ports = *(__u32 *)&p->tuple.source_port;
	__u32 new_ports = *(__u32 *)&to->source_port;
	if (bpf_l4_csum_replace(skb, offset, 0, addresses, BPF_F_PSEUDO_HDR | zero_stays))
		return -DROP_REWRITE;
	if (old_ports != new_ports && bpf_l4_csum_replace(skb, offset, old_ports, new_ports, zero_stays | 4))
		return -DROP_REWRITE;
	return 0;
}

static __always_inline int write_ipv4(struct __sk_buff *skb, const struct tuple *to, bool routed, __u32 diff)
{
	struct iphdr *ip = data_of(skb) + ETHERNET_LENGTH;
	if ((void *)(ip + 1) > end_of(skb))
		return -DROP_REWRITE;
	ip->saddr = to->source.word[3];
	ip->daddr = to->destination.word[3];
	if (routed) {
		ip->ttl--;
		diff = csum_add(diff, (__u16)~bpf_htons(0x0100)); /* one less in the high byte of a 16-bit word */
	}
	ip->check = csum_apply(ip->check, diff);
	return 0;
}

static __always_inline int write_ipv6(struct __sk_buff *skb, const struct tuple *to, bool routed)
{
	struct ipv6hdr *ip = data_of(skb) + ETHERNET_LENGTH;
	if ((void *)(ip + 1) > end_of(skb))
		return -DROP_REWRITE;
	__builtin_memcpy(&ip->saddr, &to->source, 32);
	if (routed)
		ip->hop_limit--;
	return 0;
}

/* What IPv6 addresses, and a hop limit of one less, add to a sum; 16 bits, for so BCC declares bpf_csum_update. */
static __always_inline __u16 ipv6_diff(__u32 addresses, bool routed)
{
	__u32 sum = (addresses & 0xffff) + (addresses >> 16);
	if (routed)
		sum += (__u16)~bpf_htons(0x0001);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline int write_macs(struct __sk_buff *skb, const struct hop *hop)
{
	struct ethhdr *ethernet = data_of(skb);
	if ((void *)(ethernet + 1) > end_of(skb))
		return -DROP_REWRITE;
	if (hop->outcome == OUTCOME_NETWORK)
		__builtin_memcpy(ethernet->h_source, hop->source, 6);
	else
		__builtin_memcpy(ethernet->h_source, ethernet->h_dest, 6);
	__builtin_memcpy(ethernet->h_dest, hop->destination, 6);
	return 0;
}

static __always_inline int write_ports(struct __sk_buff *skb, const struct packet *p, const struct tuple *to)
{
	struct ports *ports = at(skb, p->l4);
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if ((void *)(ports + 1) > end_of(skb))
		return -DROP_REWRITE;
	ports->source = to->source_port;
	ports->destination = to->destination_port;
	return 0;
}

/* SCTP's checksum covers no addresses (RFC 9260 §6.8), and is 0 where the device is to compute it. That of a fragmented
 * packet covers more than we see: such a one can only keep its ports. */
static __always_inline int write_sctp(struct __sk_buff *skb, const struct packet *p, const struct tuple *to)
{
	__be32 old = *(__be32 *)&p->tuple.source_port;
	struct {
		__be32 ports, tag, check;
	} header;
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4, &header, sizeof(header)))
		return -DROP_REWRITE;
	header.ports = *(__be32 *)&to->source_port;
	if (header.ports == old)
		return 0;
	if (p->fragment != FRAGMENT_NO)
		return -DROP_REWRITE;
	if (header.check)
		header.check ^= bpf_htonl(__builtin_bswap32(crc32c_of_head(old ^ header.ports, p->l4_length)));
	return bpf_skb_store_bytes(skb, p->l4, &header, sizeof(header), BPF_F_RECOMPUTE_CSUM) ? -DROP_REWRITE : 0;
}

/* Change the packet to tuple `to` (when `nat`) and for its next hop. Returns 0 or -DROP_REWRITE. Packet pointers are
 * void afterwards. */
static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, bool nat,
				   const struct hop *hop)
{
	bool routed = hop->outcome != OUTCOME_STACK;
	if (!nat && !routed)
		return 0;
	__u32 diff = nat ? address_diff(&p->tuple, to) : 0;
	int error = p->ipv6 ? write_ipv6(skb, to, routed) : write_ipv4(skb, to, routed, diff);
	/* CHECKSUM_COMPLETE, a card's sum of the whole packet: the header's checksum balances what we write to IPv4,
	 * nothing does in IPv6, and bpf_l4_csum_replace takes the addresses for balanced. */
	if (p->ipv6)
		bpf_csum_update(skb, ipv6_diff(diff, routed));
	if (!error && routed)
		error = write_macs(skb, hop);
	if (error || !nat)
		return error;
	if (p->tuple.protocol == IPPROTO_SCTP)
		return write_sctp(skb, p, to);
	error = write_ports(skb, p, to);
	return error ? error : write_l4_checksum(skb, p, diff, to);
}
