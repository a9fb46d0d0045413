/* tc egress of the uplink: what leaves the node. Pods' packets were judged and translated at from_pod, and clients'
 * outside at from_network; what is left are those of the node's own processes, and of the stack itself. */

int to_network(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex) /* came in somewhere: not of this node's making */
		return finish(skb, HOOK_TO_NETWORK, OUTCOME_STACK, 0, TC_ACT_UNSPEC);
	return from_process(skb, HOOK_TO_NETWORK);
}
