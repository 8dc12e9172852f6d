/**
 * The Java client of multitower: one object, called from many threads, that uses every GPU of a machine.
 *
 * <p>{@link multitower.MultitowerClient} asks a daemon ({@code multitower serve}) over one ZeroMQ connection.
 * {@link multitower.Tensor} is what models take and give; {@link multitower.MultitowerException} and its subclasses are
 * what can go wrong. docs/java.md of the project is the guide, docs/protocol.md tells what is on the wire.
 */
package multitower;
