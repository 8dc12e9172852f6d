/**
 * The Java client of multitower: one object, called from many threads, that uses every GPU of a machine.
 *
 * <p>{@link multitower.MultitowerClient} is one ZeroMQ connection to a daemon ({@code multitower serve}).
 * {@link multitower.Tensor}s are the inputs and outputs of models; errors are {@link multitower.MultitowerException}s.
 * docs/java.md of the project is the guide, docs/protocol.md specifies the protocol.
 */
package multitower;
