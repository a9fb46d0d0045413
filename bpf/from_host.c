/* tc egress of the loopback device: what this node's own processes send to its own addresses. */

int from_host(struct __sk_buff *skb)
{
	return finish(skb, HOOK_FROM_HOST, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
}
