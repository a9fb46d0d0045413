/* tc egress of the loopback device: what this node's own processes send to its own addresses, its NodePorts among them. */

/* To 127.0.0.0/8 or ::1: never a service, and most of what is here. Also what is no IP packet. */
static __always_inline bool stays_within(struct __sk_buff *skb)
{
	struct ethhdr *ethernet = data_of(skb);
	if ((void *)(ethernet + 1) + sizeof(struct iphdr) > end_of(skb))
		return false; /* not linear that far: parse() sees to it */
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		return (((struct iphdr *)(ethernet + 1))->daddr & 0xff) == 127;
	struct ipv6hdr *ip = (void *)(ethernet + 1);
	if ((void *)(ip + 1) > end_of(skb))
		return false;
	const __be32 *to = ip->daddr.in6_u.u6_addr32;
	return !(to[0] | to[1] | to[2]) && to[3] == bpf_htonl(1);
}

int from_host(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex || stays_within(skb))
		return pass(skb, HOOK_FROM_HOST);
	return from_process(skb, HOOK_FROM_HOST);
}
