"""torch.distributed as the engine of a job: in processes that can be killed, met by way of the exchange's links."""
