import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/**
 * java.net.http.HttpClient.  ClientZoo PORT PLAN keepalive|fresh CONNECTIONS [upgrade]
 *
 * <p>With "upgrade" it keeps the library's default and offers HTTP/2 (h2c) in its first request.
 */
public final class ClientZoo {
    private static String json(String text) {
        return text.replace("\\", "\\\\").replace("\"", "\\\"").replace('\n', ' ');
    }

    private static String exchange(HttpClient client, String base, String[] planned, boolean fresh) {
        var builder = HttpRequest.newBuilder(URI.create(base + planned[2])).timeout(Duration.ofSeconds(60));
        if (fresh) {
            builder.header("Connection", "close");
        }
        byte[] body = "x".repeat(Integer.parseInt(planned[3])).getBytes();
        if (!planned[1].equals("POST")) {
            builder.GET();
        } else if (planned[4].equals("1")) {
            builder.POST(BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body)));
        } else {
            builder.POST(BodyPublishers.ofByteArray(body));
        }
        HttpRequest request = builder.build();
        int status = 0;
        int bytes = 0;
        String error = "";
        long start = System.nanoTime(); // CLOCK_MONOTONIC
        try {
            var response = client.send(request, BodyHandlers.ofByteArray());
            status = response.statusCode();
            bytes = response.body().length;
        } catch (Exception e) {
            error = e.toString();
        }
        long end = System.nanoTime();
        return String.format(
                "{\"n\":%s,\"method\":\"%s\",\"path\":\"%s\",\"status\":%d,\"start_ns\":%d,\"end_ns\":%d,\"bytes\":%d,\"error\":\"%s\"}",
                planned[0], planned[1], planned[2], status, start, end, bytes, json(error));
    }

    public static void main(String[] arguments) throws Exception {
        String base = "http://127.0.0.1:" + arguments[0];
        List<String> lines = Files.readAllLines(Path.of(arguments[1]));
        boolean fresh = arguments[2].equals("fresh");
        int connections = Integer.parseInt(arguments[3]);
        var version = arguments.length > 4 ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1;
        HttpClient client = HttpClient.newBuilder().version(version).build();
        System.out.println("ready");
        System.in.read();

        String[] truth = new String[lines.size()];
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < connections; i++) {
            int first = i;
            Thread thread = new Thread(() -> {
                for (int at = first; at < truth.length; at += connections) {
                    truth[at] = exchange(client, base, lines.get(at).split("\t"), fresh);
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println(String.join("\n", truth));
        System.exit(0);
    }
}
