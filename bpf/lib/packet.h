/* A packet as the programs see it: parsed once into `struct packet`; nothing here knows a map.
 * Parsers return 0 or -DROP_*; offsets count from the Ethernet header. */

#define ETHERNET_LENGTH 14
#define IPV6_EXTENSIONS_MAX 6
#define L4_OFFSET_MAX 1023 /* six extension headers of ordinary size; the verifier wants a bound */

#define PACKET_HOST 0 /* <linux/if_packet.h>, which wants more headers than BCC has */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum fragment_kind { FRAGMENT_NO, FRAGMENT_FIRST, FRAGMENT_LATER };
enum icmp_kind { ICMP_KIND_NONE, ICMP_KIND_ECHO, ICMP_KIND_ERROR, ICMP_KIND_NEIGHBOUR };

struct packet {
	struct tuple tuple;
	__u32 fragment_id; /* network order */
	__u32 l4;	   /* offset of the transport header */
	__u32 l4_length;   /* bytes from there to the end of the IP packet */
	__u8 mac[6];	   /* sender's */
	__u8 ttl;
	__u8 tcp_flags;	 /* SCTP: of its first chunk, in TCP's words */
	__u8 tcp_header; /* bytes */
	__u8 jumbo;	 /* bytes of BIG TCP's hop-by-hop header, which goes when the train is cut */
	__u8 tos;	 /* IPv4 */
	bool ipv6;
	__u8 fragment;	    /* enum fragment_kind */
	__u8 fragment_next; /* protocol after the fragment header: all that a later fragment says */
	__u8 icmp;	    /* enum icmp_kind */
	bool unwrapped;	    /* another node's second header was around it: the frame is from that node, or its router */
	__u8 turn;	    /* as of a flow that begins with this packet */
	bool grouped;	    /* its flow's draft has the groups of both ends (keep_groups) */
};

#define data_of(skb) ((void *)(long)(skb)->data)
#define end_of(skb) ((void *)(long)(skb)->data_end)

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] &&
	       a->word[0] == b->word[0];
}

static __always_inline bool same_tuple(const struct tuple *a, const struct tuple *b)
{
	return same_address(&a->source, &b->source) && same_address(&a->destination, &b->destination) &&
	       a->source_port == b->source_port && a->destination_port == b->destination_port &&
	       a->protocol == b->protocol;
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return a[5] == b[5] && a[4] == b[4] && a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0];
}

static __always_inline bool is_mapped(const struct address *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline void map_ipv4(struct address *to, __be32 address)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = address;
}

static __always_inline void reverse(struct tuple *to, const struct tuple *from)
{
	to->source = from->destination;
	to->destination = from->source;
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
	to->protocol = from->protocol;
	to->pad[0] = to->pad[1] = to->pad[2] = 0;
}

/* Pointer to an offset that was checked against L4_OFFSET_MAX. The mask, where the compiler can't move it, is what
 * the verifier sees of that check. */
static __always_inline void *at(struct __sk_buff *skb, __u64 offset)
{
	asm volatile("%0 &= 1023" : "+r"(offset));
	return data_of(skb) + offset;
}

/* Sources that no host has: loopback, multicast, broadcast, 0.0.0.0/8, ::/96. The stack drops them too. */
static __always_inline bool nobody(const struct packet *p)
{
	const struct address *a = &p->tuple.source;
	__u8 first = p->ipv6 ? a->word[0] & 0xff : a->word[3] & 0xff;
	if (p->ipv6)
		return first == 0xff || !(a->word[0] | a->word[1] | a->word[2]);
	return first == 0 || first == 127 || (first & 0xf0) == 224 || a->word[3] == 0xffffffff;
}

/* Make the first `length` bytes directly readable, when the packet has them. */
static __always_inline bool readable(struct __sk_buff *skb, __u32 length)
{
	if (data_of(skb) + length <= end_of(skb))
		return true;
	return length <= skb->len && bpf_skb_pull_data(skb, length) == 0;
}

/* What a chunk (RFC 9260 §3.2) does to a connection, as TCP's flags say it. An association that both sides shut down is
 * closed; those chunks, and the two that open one, come first in their packet (§6.10). */
static __always_inline __u8 flags_of_chunk(__u8 type)
{
	switch (type) {
	case 1: /* INIT */
		return TCP_SYN;
	case 2: /* INIT ACK */
		return TCP_SYN | TCP_ACK;
	case 6: /* ABORT */
		return TCP_RST;
	case 7:	 /* SHUTDOWN */
	case 8:	 /* SHUTDOWN ACK */
	case 14: /* SHUTDOWN COMPLETE */
		return TCP_FIN | TCP_ACK;
	default:
		return TCP_ACK;
	}
}

/* An ICMP echo has none: what it calls is no service, and its identifier is not ours to change. */
static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* Protocols whose connections have a beginning and an end that one sees. */
static __always_inline bool is_stream(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP;
}

/* Does this packet ask for a new connection? */
static __always_inline bool asks_to_connect(const struct packet *p)
{
	return is_stream(p->tuple.protocol) && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* May this packet open a connection? The middle of a TCP connection that we don't know is the stack's to reset. */
static __always_inline bool begins(const struct packet *p)
{
	return p->tuple.protocol != IPPROTO_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline int icmp_kind_of(bool ipv6, __u8 type)
{
	if (ipv6) {
		if (type == 128 || type == 129) /* RFC 4443 echo request, reply */
			return ICMP_KIND_ECHO;
		if (type >= 1 && type <= 4) /* RFC 4443: every error we know; unknown ones below 128 are not */
			return ICMP_KIND_ERROR;
		/* RFC 4861 router and neighbour solicitation, advertisement; RFC 2710, 3810 listener reports */
		if (type == 133 || type == 135 || type == 136 || type == 131 || type == 132 || type == 143)
			return ICMP_KIND_NEIGHBOUR;
		return ICMP_KIND_NONE;
	}
	if (type == 8 || type == 0)
		return ICMP_KIND_ECHO;
	if (type == 3 || type == 11 || type == 12) /* RFC 792 unreachable, time exceeded, parameter problem */
		return ICMP_KIND_ERROR;
	return ICMP_KIND_NONE;
}

/* The transport header: ports and flags, and that it is whole. `l4` and `l4_length` are set. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	struct tuple *t = &p->tuple;
	__u32 need = t->protocol == IPPROTO_TCP ? 20 : t->protocol == IPPROTO_SCTP ? 16 : 8;
	__u32 l4 = p->l4;
	if (t->protocol != IPPROTO_TCP && t->protocol != IPPROTO_UDP && t->protocol != IPPROTO_SCTP &&
	    t->protocol != (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return -DROP_UNSUPPORTED_PROTOCOL;
	if (p->l4_length < need || l4 > L4_OFFSET_MAX || !readable(skb, l4 + need))
		return -DROP_TRUNCATED;

	__u8 *h = at(skb, l4);
	if ((void *)h + 20 <= end_of(skb) && t->protocol == IPPROTO_TCP) {
		__u32 header = (h[12] >> 4) * 4;
		if (header < 20 || (header > p->l4_length && p->fragment == FRAGMENT_NO))
			return -DROP_MALFORMED;
		p->tcp_flags = h[13];
		p->tcp_header = header;
	}
	if ((void *)h + 16 <= end_of(skb) && t->protocol == IPPROTO_SCTP)
		p->tcp_flags = flags_of_chunk(h[12]);
	if ((void *)h + 8 > end_of(skb))
		return -DROP_TRUNCATED;
	if (t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6) {
		p->icmp = icmp_kind_of(p->ipv6, h[0]);
		if (p->icmp == ICMP_KIND_NONE)
			return -DROP_UNSUPPORTED_ICMP;
		if (p->icmp == ICMP_KIND_ECHO)
			t->source_port = t->destination_port = *(__be16 *)(h + 4);
		return 0;
	}
	t->source_port = *(__be16 *)h;
	t->destination_port = *(__be16 *)(h + 2);
	if (t->protocol == IPPROTO_UDP && p->fragment == FRAGMENT_NO) {
		__u32 length = bpf_ntohs(*(__be16 *)(h + 4));
		if (length < 8 || length > p->l4_length) {
			/* GSO: the length is that of the whole train, or 0 (RFC 2675) when it does not fit. */
			if (!skb->gso_segs)
				return -DROP_MALFORMED;
		}
	}
	return 0;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	if (!readable(skb, l3 + 20))
		return -DROP_TRUNCATED;
	struct iphdr *ip = data_of(skb) + l3;
	if ((void *)(ip + 1) > end_of(skb))
		return -DROP_TRUNCATED;
	__u32 header = ip->ihl * 4;
	__u32 total = bpf_ntohs(ip->tot_len);
	map_ipv4(&p->tuple.source, ip->saddr);
	map_ipv4(&p->tuple.destination, ip->daddr);
	p->tuple.protocol = ip->protocol;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->fragment_id = ip->id;
	p->fragment_next = ip->protocol;
	if (total == 0 && skb->gso_segs) /* BIG TCP over IPv4, Linux b1a78b9b9886 (6.3) */
		total = skb->len - l3;
	if (ip->version != 4 || header < 20 || total < header)
		return -DROP_MALFORMED;
	if (total > skb->len - l3)
		return -DROP_TRUNCATED;
	p->l4 = l3 + header;
	p->l4_length = total - header;
	__u16 offset = bpf_ntohs(ip->frag_off);
	if (offset & 0x1fff) {
		p->fragment = FRAGMENT_LATER;
		return 0;
	}
	if (offset & 0x2000)
		p->fragment = FRAGMENT_FIRST;
	return parse_transport(skb, p);
}

/* Walk the extension headers (RFC 8200 §4); returns the transport protocol or -DROP_*. */
static __always_inline int skip_extensions(struct __sk_buff *skb, struct packet *p, int next)
{
	__u32 end = p->l4 + p->l4_length;
#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		__u8 h[8];
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT) {
			/* A routing header says that the destination is not the destination: nobody here means that. */
			return next == IPPROTO_ROUTING ? -DROP_UNSUPPORTED_EXTENSION : next;
		}
		if (p->l4_length < 8 || bpf_skb_load_bytes(skb, p->l4, h, 8))
			return -DROP_TRUNCATED;
		__u32 length = 8;
		if (next == IPPROTO_FRAGMENT) {
			p->fragment_id = *(__be32 *)(h + 4);
			p->fragment_next = h[0];
			__u16 offset = bpf_ntohs(*(__be16 *)(h + 2));
			if (offset & 0xfff8)
				p->fragment = FRAGMENT_LATER;
			else if (offset & 1)
				p->fragment = FRAGMENT_FIRST;
		} else {
			length = (h[1] + 1) * 8;
		}
		if (p->l4 + length > end)
			return -DROP_TRUNCATED;
		next = h[0];
		p->l4 += length;
		p->l4_length = end - p->l4;
		if (p->fragment == FRAGMENT_LATER)
			return next;
	}
	return -DROP_UNSUPPORTED_EXTENSION;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	if (!readable(skb, l3 + 40))
		return -DROP_TRUNCATED;
	struct ipv6hdr *ip = data_of(skb) + l3;
	if ((void *)(ip + 1) > end_of(skb))
		return -DROP_TRUNCATED;
	p->ipv6 = true;
	__builtin_memcpy(&p->tuple.source, &ip->saddr, 32);
	p->ttl = ip->hop_limit;
	__u32 payload = bpf_ntohs(ip->payload_len);
	if (payload == 0 && skb->gso_segs) { /* BIG TCP */
		payload = skb->len - l3 - 40;
		p->jumbo = ip->nexthdr == IPPROTO_HOPOPTS ? 8 : 0;
	}
	/* A mapped address on the wire would pass for IPv4 in our tables; RFC 4942 §2.2 says drop. */
	if (ip->version != 6 || is_mapped(&p->tuple.source) || is_mapped(&p->tuple.destination))
		return -DROP_MALFORMED;
	if (payload > skb->len - l3 - 40)
		return -DROP_TRUNCATED;
	p->l4 = l3 + 40;
	p->l4_length = payload;
	int next = ip->nexthdr;
	if (next != IPPROTO_TCP && next != IPPROTO_UDP) {
		next = skip_extensions(skb, p, next);
		if (next < 0)
			return next;
	}
	p->tuple.protocol = next;
	return p->fragment == FRAGMENT_LATER ? 0 : parse_transport(skb, p);
}

/* Parse the IP packet at offset `l3`; -DROP_UNSUPPORTED_ETHERTYPE for anything else, and for what is of a VLAN: its tag
 * stands beside the data, so it looks like any other, and what we redirected would still carry it. `p` starts out zero.
 */
static __always_inline int parse_at(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	if (skb->vlan_present)
		return -DROP_UNSUPPORTED_ETHERTYPE;
	if (!readable(skb, ETHERNET_LENGTH))
		return -DROP_TRUNCATED;
	struct ethhdr *ethernet = data_of(skb);
	if ((void *)(ethernet + 1) > end_of(skb))
		return -DROP_TRUNCATED;
	__builtin_memcpy(p->mac, ethernet->h_source, 6);
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, p, l3);
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, p, l3);
	return -DROP_UNSUPPORTED_ETHERTYPE;
}

static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	return parse_at(skb, p, ETHERNET_LENGTH);
}
