/* ICMP errors about our flows: the quoted packet is what its sender saw, so it and the outer addresses are translated
 * back along the flow (RFC 5508 §4.2). Path-MTU discovery and traceroute hang on this. */

#define QUOTED_EXTENSIONS_MAX 4

struct quote {
	struct tuple tuple; /* of the quoted packet */
	__u32 l3;	    /* offset of its IP header */
	__u32 l4;	    /* offset of its transport header */
};

static __always_inline int quote_ports(struct __sk_buff *skb, bool ipv6, struct quote *q)
{
	__u8 h[8];
	struct tuple *t = &q->tuple;
	if (bpf_skb_load_bytes(skb, q->l4, h, 8))
		return -DROP_TRUNCATED;
	if (t->protocol == (ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		if (icmp_kind_of(ipv6, h[0]) != ICMP_KIND_ECHO)
			return -DROP_FLOW_UNKNOWN;
		t->source_port = t->destination_port = *(__be16 *)(h + 4);
		return 0;
	}
	if (t->protocol != IPPROTO_TCP && t->protocol != IPPROTO_UDP && t->protocol != IPPROTO_SCTP)
		return -DROP_FLOW_UNKNOWN;
	t->source_port = *(__be16 *)h;
	t->destination_port = *(__be16 *)(h + 2);
	return 0;
}

/* Read the quoted packet of an error. Later fragments name no flow, nor do more extension headers
 * than we follow. */
static __always_inline int parse_quote(struct __sk_buff *skb, const struct packet *p, struct quote *q)
{
	q->l3 = p->l4 + 8;
	if (p->ipv6) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)))
			return -DROP_TRUNCATED;
		__builtin_memcpy(&q->tuple.source, &ip.saddr, 32);
		q->tuple.protocol = ip.nexthdr;
		q->l4 = q->l3 + sizeof(ip);
#pragma unroll
		for (int i = 0; i < QUOTED_EXTENSIONS_MAX; i++) {
			__u8 h[8], kind = q->tuple.protocol;
			if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_DSTOPTS && kind != IPPROTO_FRAGMENT)
				break;
			if (bpf_skb_load_bytes(skb, q->l4, h, 8))
				return -DROP_TRUNCATED;
			/* A first fragment is how a large datagram learns the path's MTU. */
			if (kind == IPPROTO_FRAGMENT && (*(__be16 *)(h + 2) & bpf_htons(0xfff8)))
				return -DROP_FLOW_UNKNOWN;
			q->tuple.protocol = h[0];
			q->l4 += kind == IPPROTO_FRAGMENT ? 8 : (h[1] + 1) * 8;
		}
	} else {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)))
			return -DROP_TRUNCATED;
		if (ip.ihl < 5)
			return -DROP_MALFORMED;
		if (ip.frag_off & bpf_htons(0x1fff))
			return -DROP_FLOW_UNKNOWN;
		map_ipv4(&q->tuple.source, ip.saddr);
		map_ipv4(&q->tuple.destination, ip.daddr);
		q->tuple.protocol = ip.protocol;
		q->l4 = q->l3 + ip.ihl * 4;
	}
	return quote_ports(skb, p->ipv6, q);
}

/* Change 2 bytes at `offset` by `diff`; returns the checksum difference that this makes to whoever covers them. */
static __always_inline int patch_check(struct __sk_buff *skb, __u32 offset, __u32 diff, bool zero_stays, __u32 *sum)
{
	__sum16 check;
	if (bpf_skb_load_bytes(skb, offset, &check, 2))
		return 0; /* not quoted that far */
	if (zero_stays && check == 0)
		return 0;
	__be32 old = check, new = csum_apply(check, diff);
	__sum16 written = new;
	*sum = bpf_csum_diff(&old, 4, &new, 4, *sum);
	return bpf_skb_store_bytes(skb, offset, &written, 2, BPF_F_RECOMPUTE_CSUM) ? -DROP_REWRITE : 0;
}

/* Put `new` in place of the quoted tuple; *sum collects what the ICMP checksum must be told. */
static __always_inline int rewrite_quote(struct __sk_buff *skb, const struct packet *p, const struct quote *q,
					 const struct tuple *new, __u32 *sum)
{
	__u32 addresses = address_diff(&q->tuple, new);
	__u32 all = bpf_csum_diff((__be32 *)&q->tuple.source_port, 4, (__be32 *)&new->source_port, 4, addresses);
	int error;

	*sum = all;
	if (bpf_skb_store_bytes(skb, q->l4, &new->source_port, 4, BPF_F_RECOMPUTE_CSUM))
		return -DROP_REWRITE;
	if (p->ipv6) {
		error = bpf_skb_store_bytes(skb, q->l3 + 8, &new->source, 32, BPF_F_RECOMPUTE_CSUM);
	} else {
		__be32 pair[2] = { new->source.word[3], new->destination.word[3] };
		error = patch_check(skb, q->l3 + 10, addresses, false, sum);
		if (!error)
			error = bpf_skb_store_bytes(skb, q->l3 + 12, pair, 8, BPF_F_RECOMPUTE_CSUM);
	}
	if (error)
		return -DROP_REWRITE;
	if (q->tuple.protocol == IPPROTO_UDP)
		return patch_check(skb, q->l4 + 6, all, true, sum);
	if (q->tuple.protocol == IPPROTO_TCP)
		return patch_check(skb, q->l4 + 16, all, false, sum);
	return 0;
}

/* Outer addresses, their IP checksum and the ICMP checksum (which covers the addresses in IPv6 only). */
static __always_inline int rewrite_outer(struct __sk_buff *skb, const struct packet *p, const struct tuple *to,
					 __u32 sum)
{
	__u32 diff = address_diff(&p->tuple, to);
	__u32 ignored = 0;
	int error;

	if (p->ipv6) {
		sum = csum_add(sum, diff);
		error = bpf_skb_store_bytes(skb, ETHERNET_LENGTH + 8, &to->source, 32, BPF_F_RECOMPUTE_CSUM);
	} else {
		__be32 pair[2] = { to->source.word[3], to->destination.word[3] };
		error = patch_check(skb, ETHERNET_LENGTH + 10, diff, false, &ignored);
		if (!error)
			error = bpf_skb_store_bytes(skb, ETHERNET_LENGTH + 12, pair, 8, BPF_F_RECOMPUTE_CSUM);
	}
	if (error)
		return -DROP_REWRITE;
	return patch_check(skb, p->l4 + 2, sum, false, &ignored);
}

/* The flow that an error is about; its direction is the error's. NULL with *error set. */
static __always_inline struct flow *find_error(struct __sk_buff *skb, const struct packet *p, struct quote *q,
					       int *error)
{
	struct tuple key;
	*error = parse_quote(skb, p, q);
	if (*error)
		return NULL;
	*error = -DROP_FLOW_UNKNOWN;
	reverse(&key, &q->tuple);
	/* An error goes to nobody but the sender of the packet that it quotes. */
	if (!same_address(&p->tuple.destination, &key.destination))
		return NULL;
	return flows.lookup(&key);
}

/* Translate an error along its flow; the packet's tuple is then as it stands in the packet. Returns 0 or -DROP_*. */
static __always_inline int translate_error(struct __sk_buff *skb, struct packet *p, const struct quote *q,
					   const struct flow *f)
{
	struct tuple new, to = p->tuple;
	__u32 sum = 0;
	if (!(f->flags & FLOW_NAT))
		return 0;
	reverse(&new, &f->to);
	int error = rewrite_quote(skb, p, q, &new, &sum);
	if (error)
		return error;
	/* A router on the way speaks for itself, the far end for whom the sender believes it talks to. */
	if (same_address(&to.source, &q->tuple.destination))
		to.source = f->to.source;
	to.destination = f->to.destination;
	error = rewrite_outer(skb, p, &to, sum);
	p->tuple = to;
	return error;
}
