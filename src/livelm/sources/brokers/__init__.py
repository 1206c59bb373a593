"""Streams and topics of message brokers as sources, and publishers that fill them: NATS JetStream, Kafka, Redis."""
