import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.NettyServerBuilder;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/** gRPC over Netty without generated code.  server PORT, or client PORT PLAN CONCURRENCY */
public class GrpcZoo {
  /** Messages are bytes. */
  static final class Raw implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }
  }

  static final ScheduledExecutorService TIMER = Executors.newScheduledThreadPool(1);

  static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  static MethodDescriptor<byte[], byte[]> method(String name) {
    MethodType type =
        switch (name) {
          case "Collect" -> MethodType.CLIENT_STREAMING;
          case "Listen" -> MethodType.SERVER_STREAMING;
          case "Talk" -> MethodType.BIDI_STREAMING;
          default -> MethodType.UNARY;
        };
    return MethodDescriptor.<byte[], byte[]>newBuilder(new Raw(), new Raw())
        .setType(type)
        .setFullMethodName("zoo.Zoo/" + name)
        .build();
  }

  static byte[] bytes(int count, char letter) {
    byte[] made = new byte[count];
    Arrays.fill(made, (byte) letter);
    return made;
  }

  // ---- server

  /** One call: it answers as its metadata asks. */
  static ServerCall.Listener<byte[]> serve(ServerCall<byte[], byte[]> call, Metadata headers) {
    String name = call.getMethodDescriptor().getBareMethodName();
    int status = number(headers, "zoo-status", 0);
    int responses = number(headers, "zoo-responses", 1);
    byte[] message = bytes(number(headers, "zoo-bytes", 10), 'a');
    int delay = number(headers, "zoo-delay-ms", 0);
    call.request(Integer.MAX_VALUE);
    return new ServerCall.Listener<byte[]>() {
      boolean begun;

      void send() {
        if (!begun) {
          begun = true;
          call.sendHeaders(new Metadata());
        }
        call.sendMessage(message);
      }

      @Override
      public void onMessage(byte[] asked) {
        if (name.equals("Talk")) send();
      }

      @Override
      public void onHalfClose() {
        if (name.equals("Listen")) for (int i = 0; i < responses; i++) send();
        if (delay > 0) TIMER.schedule(this::finish, delay, TimeUnit.MILLISECONDS);
        else finish();
      }

      void finish() {
        if (call.isCancelled()) return;
        if (status == 0 && (name.equals("Unary") || name.equals("Collect"))) send();
        if (status == 0 && !begun) call.sendHeaders(new Metadata());
        call.close(Status.fromCodeValue(status).withDescription("as asked"), new Metadata());
      }
    };
  }

  static int number(Metadata headers, String name, int otherwise) {
    String text = headers.get(key(name));
    return text == null ? otherwise : Integer.parseInt(text);
  }

  static void runServer(int port) throws Exception {
    ServerServiceDefinition.Builder service = ServerServiceDefinition.builder("zoo.Zoo");
    for (String name : List.of("Unary", "Collect", "Listen", "Talk"))
      service.addMethod(method(name), GrpcZoo::serve);
    Server server =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port))
            .addService(service.build())
            .build()
            .start();
    server.awaitTermination();
  }

  // ---- client

  /** Makes one call of the plan, and waits for its end. */
  static String carryOut(ManagedChannel channel, String[] words) throws InterruptedException {
    String kind = words[1];
    int requests = Integer.parseInt(words[4]);
    byte[] message = bytes(Integer.parseInt(words[6]), 'q');
    long deadline = Long.parseLong(words[8]);
    long cancel = Long.parseLong(words[9]);
    Metadata headers = new Metadata();
    headers.put(key("traceparent"), words[2]);
    headers.put(key("zoo-status"), words[3]);
    headers.put(key("zoo-responses"), words[5]);
    headers.put(key("zoo-bytes"), words[6]);
    headers.put(key("zoo-delay-ms"), words[7]);
    CallOptions options = CallOptions.DEFAULT;
    if (deadline > 0) options = options.withDeadlineAfter(deadline, TimeUnit.MILLISECONDS);
    CountDownLatch over = new CountDownLatch(1);
    Status[] status = new Status[1];
    long[] end = new long[1];
    int[] came = new int[1];
    long start = System.nanoTime(); // CLOCK_MONOTONIC
    ClientCall<byte[], byte[]> call = channel.newCall(method(kind), options);
    call.start(
        new ClientCall.Listener<>() {
          @Override
          public void onMessage(byte[] answer) {
            came[0]++;
          }

          @Override
          public void onClose(Status closed, Metadata trailers) {
            status[0] = closed;
            end[0] = System.nanoTime();
            over.countDown();
          }
        },
        headers);
    call.request(Integer.MAX_VALUE);
    if (cancel > 0)
      TIMER.schedule(() -> call.cancel("as planned", null), cancel, TimeUnit.MILLISECONDS);
    int count = kind.equals("Collect") || kind.equals("Talk") ? requests : 1;
    for (int i = 0; i < count; i++) call.sendMessage(message);
    call.halfClose();
    over.await();
    return String.format(
        "{\"n\":%s,\"status\":\"%s\",\"start_ns\":%d,\"end_ns\":%d,\"responses\":%d}",
        words[0], status[0].getCode(), start, end[0], came[0]);
  }

  static void runClient(int port, String planned, int concurrency) throws Exception {
    List<String[]> plan = new ArrayList<>();
    for (String line : Files.readAllLines(Path.of(planned))) plan.add(line.split(" "));
    ManagedChannel channel =
        NettyChannelBuilder.forAddress(new InetSocketAddress("127.0.0.1", port)).usePlaintext().build();
    List<String> lines = Collections.synchronizedList(new ArrayList<>());
    System.out.println("ready");
    System.in.read();
    List<Thread> threads = new ArrayList<>();
    for (int first = 0; first < concurrency; first++) {
      int from = first;
      Thread thread =
          new Thread(
              () -> {
                try {
                  for (int i = from; i < plan.size(); i += concurrency)
                    lines.add(carryOut(channel, plan.get(i)));
                } catch (InterruptedException error) {
                  Thread.currentThread().interrupt();
                }
              });
      threads.add(thread);
      thread.start();
    }
    for (Thread thread : threads) thread.join();
    channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    lines.forEach(System.out::println);
    System.out.flush();
    TIMER.shutdownNow();
  }

  public static void main(String[] arguments) throws Exception {
    int port = Integer.parseInt(arguments[1]);
    if (arguments[0].equals("server")) runServer(port);
    else runClient(port, arguments[2], Integer.parseInt(arguments[3]));
  }
}
