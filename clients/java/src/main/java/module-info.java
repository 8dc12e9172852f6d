/**
 * The Java client of multitower.
 *
 * <p>JeroMQ requires jnacl only for CURVE, which this client does not use: applications may leave it out.
 */
module io.github.multitower.client {
    requires com.google.gson;
    requires org.zeromq.jeromq;

    exports io.github.multitower.client;
}
