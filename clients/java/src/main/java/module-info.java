/** The Java client of multitower. */
module io.github.multitower.client {
    requires com.google.gson;
    requires org.zeromq.jeromq;

    exports io.github.multitower.client;
}
