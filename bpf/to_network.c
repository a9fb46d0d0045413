/* tc egress of the uplink: what leaves the node. Pods' packets were judged and translated at from_pod, and nothing is
 * masqueraded between nodes, so all there is to do is to count. */

int to_network(struct __sk_buff *skb)
{
	return finish(skb, HOOK_TO_NETWORK, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
}
