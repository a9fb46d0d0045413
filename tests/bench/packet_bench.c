/* The datapath's own programs, made to run again and again on one packet: see packet.py.
 *
 * The packet carries a copy of its first 80 bytes right behind them; after a run they are put back. */

/* BCC takes every function with external linkage for a program, and programs can't be called; declared static first,
 * these two are plain functions in this text (C11 §6.2.2 paragraph 5). */
struct __sk_buff;
static __attribute__((always_inline)) int from_pod(struct __sk_buff *skb);
static __attribute__((always_inline)) int from_network(struct __sk_buff *skb);

#include "../../bpf/ebpfnet.c"

#define WORDS 10 /* of 8 bytes: Ethernet, IPv6 and TCP headers are 74 bytes */

static __always_inline void restore(struct __sk_buff *skb)
{
	__u64 *head = data_of(skb);
	if ((void *)(head + 2 * WORDS) > end_of(skb))
		return;
#pragma unroll
	for (int i = 0; i < WORDS; i++)
		head[i] = head[WORDS + i];
}

/* The next packet comes from another port: the copy's source port counts up. */
static __always_inline void restore_next(struct __sk_buff *skb)
{
	__u64 *head = data_of(skb);
	if ((void *)(head + 2 * WORDS) > end_of(skb))
		return;
	struct ethhdr *ethernet = (void *)(head + WORDS);
	__u16 *port = (void *)ethernet + ETHERNET_LENGTH + (ethernet->h_proto == bpf_htons(ETH_P_IPV6) ? 40 : 20);
	*port += 1;
	restore(skb);
}

int empty(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

int restore_only(struct __sk_buff *skb)
{
	restore(skb);
	return TC_ACT_OK;
}

int restore_next_only(struct __sk_buff *skb)
{
	restore_next(skb);
	return TC_ACT_OK;
}

int from_pod_again(struct __sk_buff *skb)
{
	int verdict = from_pod(skb);
	restore(skb);
	return verdict;
}

int from_pod_next(struct __sk_buff *skb)
{
	int verdict = from_pod(skb);
	restore_next(skb);
	return verdict;
}

int from_network_again(struct __sk_buff *skb)
{
	int verdict = from_network(skb);
	restore(skb);
	return verdict;
}

int from_network_next(struct __sk_buff *skb)
{
	int verdict = from_network(skb);
	restore_next(skb);
	return verdict;
}
