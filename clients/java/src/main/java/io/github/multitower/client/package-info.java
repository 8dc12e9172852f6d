/**
 * The Java client of multitower: one object, called from many threads, that uses every GPU of a machine.
 *
 * <p>{@link io.github.multitower.client.MultitowerClient} is one ZeroMQ connection to a daemon ({@code multitower
 * serve}). {@link io.github.multitower.client.Tensor}s are the inputs and outputs of models; errors are
 * {@link io.github.multitower.client.MultitowerException}s. docs/java.md of the project is the guide, docs/protocol.md
 * specifies the protocol.
 */
package io.github.multitower.client;
